#!/usr/bin/env bash
# Uploads offline Weights & Biases runs, all segments of an experiment to one run. Runs where it is called: a login node.
#   bash iridis/wandb-sync/job.sh                     # everything below $WANDB_DIR that is not uploaded yet
#   bash iridis/wandb-sync/job.sh --dry-run [FOLDER ...]
# Calling it again uploads only what is new; jobs may be running meanwhile. Needs `wandb login` once.
LIBRARY="$(dirname "$(readlink -f "$0")")/../lib.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/wandb-sync/job.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"

ensure_environment
# without a terminal wandb says that nobody is logged in, instead of asking for a key
exec python "$REPO_DIR/iridis/wandb-sync/sync.py" --wandb_dir "$WANDB_DIR" --results_dir "$RESULTS_DIR" "$@" </dev/null
