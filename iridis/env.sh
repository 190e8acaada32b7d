# shellcheck shell=bash disable=SC2034
# Every path and setting of the site, in one place. Each value can be set in the environment beforehand, or in
# iridis/site.sh (not in git), which may use the same `: "${NAME:=value}"` form.
# Sourced by iridis/lib.sh; on a login node: source iridis/env.sh

REPO_DIR="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [[ -f "$REPO_DIR/iridis/site.sh" ]]; then
    # shellcheck source=/dev/null
    if declare -F foreign >/dev/null; then # within a job script
        foreign source "$REPO_DIR/iridis/site.sh" || die "$REPO_DIR/iridis/site.sh: its last command failed with code $?"
    else
        source "$REPO_DIR/iridis/site.sh"
    fi
fi

# paths: the cluster's scratch where it exists, else a folder of the clone
if [[ -z "${SCRATCH_DIR:-}" ]]; then
    SCRATCH_DIR="$REPO_DIR/scratch"
    if [[ -n "${USER:-}" && -d "/scratch/$USER" && -w "/scratch/$USER" ]]; then
        SCRATCH_DIR="/scratch/$USER"
    fi
fi
: "${TEAM_DIR:=$SCRATCH_DIR}"              # a folder that a team shares: datasets, caches and environment; results stay personal
: "${DATA_DIR:=$TEAM_DIR/datasets}"        # prepared datasets, one folder each
: "${RESULTS_DIR:=$SCRATCH_DIR/exps}"      # experiment folders
: "${VENV_DIR:=$([[ "$TEAM_DIR" == "$REPO_DIR/scratch" ]] && echo "$REPO_DIR/.venv" || echo "$TEAM_DIR/cotformer-venv")}"
: "${CONDA_ENV_PREFIX:=$TEAM_DIR/cotformer-env}" # used instead of VENV_DIR where `module load conda` works
: "${USE_CONDA:=auto}"                     # auto, or no
export TIKTOKEN_CACHE_DIR="${TIKTOKEN_CACHE_DIR:-$TEAM_DIR/.cache/tiktoken}" # GPT-2's BPE ranks, for nodes without internet
export HF_HOME="${HF_HOME:-$TEAM_DIR/.cache/huggingface}"                    # the hub's cache, off the home quota
if [[ "$SCRATCH_DIR" != "$REPO_DIR/scratch" ]]; then # gigabytes of wheels and packages; each user's own, for pip does not use another's
    export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$SCRATCH_DIR/.cache/pip}"
    export CONDA_PKGS_DIRS="${CONDA_PKGS_DIRS:-$SCRATCH_DIR/.cache/conda}"
fi
export WANDB_DIR="${WANDB_DIR:-$SCRATCH_DIR/.cache/wandb}"                   # offline runs, until iridis/wandb-sync
export WANDB_MODE="${WANDB_MODE:-offline}"                                   # compute nodes have no internet
export RESULTS_DIR DATA_DIR

# SLURM: the account that jobs are charged to, and partitions of Iridis X, by what a job needs of them
: "${ACCOUNT:=}"                           # Iridis X: ecsstudents. Empty: SBATCH_ACCOUNT, or the user's default account
: "${GPU_PARTITION:=ecsstudents_l4}"       # 24 GB GPUs, 1 day; others: a100 (80 GB, 2d12h), scavenger_l4 and scavenger_4a100 (12 h, preemptible)
: "${CPU_PARTITION:=amd_student}"          # tokenising
: "${DOWNLOAD_PARTITION:=}"                # one whose nodes have internet; empty: downloads run where they are called
: "${SBATCH_OPTIONS:=}"                    # further options of sbatch, separated by spaces (it also reads SBATCH_QOS, ...)
: "${CHAIN_BY:=resubmit}"                  # how a job goes on after its time limit: resubmit (sbatch), or requeue (scontrol)
: "${HEALTH_CHECK:=1}"                     # 0: no check of the nodes before a training
if [[ -z "${NOTIFY_EMAIL+set}" && -n "${USER:-}" ]] && command -v sbatch >/dev/null && [[ "$(hostname -f 2>/dev/null)" == *.soton.ac.uk ]]; then
    NOTIFY_EMAIL="$USER@soton.ac.uk"
fi
: "${NOTIFY_EMAIL:=}"                      # who gets a mail when a chain has finished or stopped, and any other job; empty: nobody
: "${NOTIFY_URL:=}"                        # the same as a message to this address: a webhook of Slack, or a topic of ntfy. Keep it secret
: "${NOTIFY_FORM:=}"                       # slack: what NOTIFY_URL takes, where its name does not say
export NOTIFY_EMAIL # all jobs of a chain have that of the submission; a node's own name may mean nothing

# PyTorch
: "${TORCH_VERSION:=}"                     # a version within the range of requirements.txt; empty: the one that constraints.txt pins
: "${TORCH_INDEX_URL:=}"                   # where pip gets torch: https://download.pytorch.org/whl/cu126 for an older driver; empty: PyPI's build
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}" # DDP warns in every job about a setting that is meant as it is
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}" # less fragmentation on 24 GB GPUs
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}" # says why a collective failed; silent otherwise
# NCCL takes the first interface it finds; a container bridge or the loopback cannot reach other nodes
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker,virbr}"
