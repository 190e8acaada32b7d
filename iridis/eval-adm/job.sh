#!/usr/bin/env bash
# The adaptive LN-CoTFormer (Section 5) on the whole validation split at full compute; its router scores and Figure 5.
#   bash iridis/eval-adm/job.sh [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint DIR_OR_FILE]... [--replot] [-- flags for eval.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../evaluate.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/eval-adm/job.sh" >&2; exit 2; }
# shellcheck source=iridis/evaluate.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=4:00:00}"
PROGRAMS=(eval get_router_weights)
TRAINED_BY=adm-train # whose experiment is evaluated unless --checkpoint names others

# work: and the router scores of each checkpoint, which are large
work() {
    local n
    evaluate_all
    set_workspace
    for n in "${!CHECKPOINTS[@]}"; do
        python get_router_weights.py --checkpoint "${CHECKPOINTS[n]}" --output_dir "$WORKSPACE$(part "$n")" --cascade raw position token "${FLAGS[@]}"
    done
    draw
}

# draw: Figure 5 of all checkpoints together, and the report
draw() {
    mapfile -t scores < <(find "$WORKSPACE" -name 'router_weights*.npz' | sort)
    python plot_fig5.py "${scores[@]}" --output_dir "$RUN_DIR"
    python -m report "$RUN_DIR" --output "$RUN_DIR"
}

run_evaluation "$@"
