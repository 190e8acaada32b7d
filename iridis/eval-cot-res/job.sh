#!/usr/bin/env bash
# Perplexity of the CoTFormer with reserved layers (Table 2, row 3) on the whole validation split.
#   bash iridis/eval-cot-res/job.sh [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint DIR_OR_FILE]... [--replot] [-- flags for eval.py]
# shellcheck source=iridis/evaluate.sh
source "$(dirname "${BASH_SOURCE[0]}")/../evaluate.sh"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=4:00:00}"
TRAINED_BY=cot-res-train # whose experiment is evaluated unless --checkpoint names others

run_evaluation "$@"
