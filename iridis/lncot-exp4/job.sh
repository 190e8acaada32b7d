#!/usr/bin/env bash
# Figure 4: perplexity of the adaptive LN-CoTFormer at every compute budget, by router thresholds and at fixed depths.
#   bash iridis/lncot-exp4/job.sh [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint [LABEL=]DIR_OR_FILE]...
#       [--steps N...] [--replot] [-- flags for get_ppl_per_mac.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../evaluate.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/lncot-exp4/job.sh" >&2; exit 2; }
# shellcheck source=iridis/evaluate.sh
. "$LIBRARY"
parse_options "$@"

PROGRAMS=(get_ppl_per_mac)
NEEDS_ROUTERS=1
TRAINED_BY=adm-train # whose experiment is evaluated unless --checkpoint names others

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=10:00:00}" # a sweep is 15 evaluations of some 11 minutes on an L4

# work: goes on with the missing points when it is run again on the same run folder
work() {
    local i
    find_targets
    for i in "${!FILES[@]}"; do
        opens "$i"
        python get_ppl_per_mac.py "${OPENS[@]}" --output_dir "$RUN_DIR$(sweep "$i")" "${FLAGS[@]}"
    done
    draw
}

# sweep I: where the sweep of the I-th file is, below a folder; of a single one, in that folder
sweep() {
    ((${#FILES[@]} == 1)) && [[ -z ${LABELS[0]} ]] || place "$1"
}

# draw: the curves of all sweeps in one figure
draw() {
    found ppl_per_mac.json "$RUN_DIR" "${!CHECKPOINTS[@]}"
    ((${#FOUND[@]})) || die "no sweep is left in $RUN_DIR: evaluate again"
    python plot_fig4.py "${FOUND[@]}" --output_dir "$RUN_DIR"
}

run_evaluation "$@"
