#!/usr/bin/env bash
# Figure 4: perplexity of the adaptive LN-CoTFormer at every compute budget, by router thresholds and at fixed depths.
#   bash iridis/lncot-exp4/job.sh [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint DIR_OR_FILE]... [--replot] [-- flags for eval.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../evaluate.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/lncot-exp4/job.sh" >&2; exit 2; }
# shellcheck source=iridis/evaluate.sh
. "$LIBRARY"
parse_options "$@"

((${#CHECKPOINTS[@]} < 2)) || die "Figure 4 is of one checkpoint, not ${#CHECKPOINTS[@]}"
PROGRAMS=(get_ppl_per_mac)
TRAINED_BY=adm-train # whose experiment is evaluated unless --checkpoint names others

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=4:00:00}"

# work: goes on with the missing points when it is run again on the same run folder
work() {
    find_checkpoints
    python get_ppl_per_mac.py --checkpoint "${CHECKPOINTS[0]}" --output_dir "$RUN_DIR" "${FLAGS[@]}"
    draw
}

draw() { python plot_fig4.py "$RUN_DIR/ppl_per_mac.json" --output_dir "$RUN_DIR"; }

run_evaluation "$@"
