#!/usr/bin/env bash
# Perplexity of the LN-CoTFormer (Table 2, row 4; Section 5) on the whole validation split.
#   bash iridis/eval-lncot/job.sh [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint [LABEL=]DIR_OR_FILE]...
#       [--steps N...] [--replot] [-- flags for eval.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../evaluate.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/eval-lncot/job.sh" >&2; exit 2; }
# shellcheck source=iridis/evaluate.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=4:00:00}"
TRAINED_BY=lncot-train # whose experiment is evaluated unless --checkpoint names others

run_evaluation "$@"
