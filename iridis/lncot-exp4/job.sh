#!/usr/bin/env bash
# Figure 4, fixed depth: perplexity of the adaptive LN-CoTFormer when every token makes the same number of passes, 1 to all.
#   bash iridis/lncot-exp4/job.sh [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint DIR_OR_FILE]... [-- flags for eval.py]
# shellcheck source=iridis/evaluate.sh
source "$(dirname "${BASH_SOURCE[0]}")/../evaluate.sh"
parse_options "$@"

TRAINED_BY=adm-train # whose experiment is evaluated unless --checkpoint names others

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=4:00:00}"

# work: full depth, which also tells the number of passes; then all tokens go on after the first passes and none later
work() {
    local passes depth factors
    find_checkpoints
    evaluate "$RUN_DIR/depth_full" "${CHECKPOINTS[0]}"
    passes="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["args"]["n_repeat"])' "$RUN_DIR"/depth_full/eval_summary_*.json)"
    for ((depth = 1; depth < passes; depth++)); do
        read -ra factors <<<"$(for ((i = 1; i < passes; i++)); do printf '%s ' $((i < depth)); done)"
        evaluate "$RUN_DIR/depth_$depth" "${CHECKPOINTS[0]}" --eval_length_factor "${factors[@]}"
    done
}

run_evaluation "$@"
