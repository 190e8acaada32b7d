#!/usr/bin/env bash
# The part of one node in a job of several: bash iridis/on_node.sh PROCESSES PROGRAM..., started by srun once on each node.
set -euo pipefail

# address NODE: where SLURM reaches it. Names need not resolve, and localhost would make each node a world of its own.
address() {
    scontrol show node -o "$1" | grep -oE ' NodeAddr=[^ ]+' | cut -d= -f2
}

processes="$1"
shift
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
start="${SLURM_RESTART_COUNT:-0}"
port=$((20000 + (SLURM_JOB_ID * 10 + SLURM_STEP_ID + 100 * start) % 10000))
exec python -m distributed.torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$processes" --local-addr "$(address "$SLURMD_NODENAME")" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID.$start.$SLURM_STEP_ID" --rdzv-endpoint "$(address "$first"):$port" \
    --rdzv-conf "is_host=$([[ $SLURM_NODEID == 0 ]] && echo 1 || echo 0)" "$@"
