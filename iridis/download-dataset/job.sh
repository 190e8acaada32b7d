#!/usr/bin/env bash
# Fetches OpenWebText2 and GPT-2's BPE ranks. Runs where it is called: a login node, which has internet; as a job only in
# DOWNLOAD_PARTITION, where the site has one.
#   bash iridis/download-dataset/job.sh                 # asks; Enter means both
#   bash iridis/download-dataset/job.sh --full          # both, without asking; goes on after an interruption
#   bash iridis/download-dataset/job.sh --bpe | --check | --reset
#   bash iridis/download-dataset/job.sh --reset --full  # deletes download, token bins and caches, after asking, and downloads again
#   bash iridis/download-dataset/job.sh --full --source DIR_OR_URL [--sha256 HEX]
# DOWNLOAD_SOURCE may name the source as well.
LIBRARY="$(dirname "$(readlink -f "$0")")/../lib.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/download-dataset/job.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"
PASS_THROUGH=1 parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${PARTITION:=$DOWNLOAD_PARTITION}" "${N_GPUS:=0}" "${CPUS:=2}" "${MEMORY:=4G}" "${TIME_LIMIT:=12:00:00}"
SINGLETON=1

DOWNLOAD=(python -m data.download --data_dir "$DATA_DIR" ${DOWNLOAD_SOURCE:+--source "$DOWNLOAD_SOURCE"} "${FLAGS[@]}")

# work: what is there already is kept
work() { exec "${DOWNLOAD[@]}"; }

# is_done: for a pipeline; trainings on another dataset need no download
is_done() { ! is_owt2 "${DATASET:-owt2}" || is_prepared owt2; }

if [[ -z $PARTITION && $DRY_RUN == 1 ]]; then
    printf 'would run here: %s\n' "$(quoted "${DOWNLOAD[@]}")"
    exit 0
elif [[ -z $PARTITION && $HOW != state ]]; then
    ensure_environment
    cd "$REPO_DIR"
    work
fi
run_job "$@"
