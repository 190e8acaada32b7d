#!/usr/bin/env bash
# The adaptive LN-CoTFormer (Section 5): perplexity on the whole validation split at full compute, Figure 4 of the last step of each
# checkpoint, router scores and Figure 5 of all. iridis/eval-adm/README.md explains them.
#   bash iridis/eval-adm/job.sh [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint [LABEL=]DIR_OR_FILE]...
#       [--steps N...] [--replot] [-- flags for eval.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../evaluate.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/eval-adm/job.sh" >&2; exit 2; }
# shellcheck source=iridis/evaluate.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=10:00:00}" # an evaluation takes some 11 minutes on an L4, Figure 4 has 15 of them
: "${FIGURE_4:=1}"  # 0: without the sweep for Figure 4, which lncot-exp4 makes too
: "${SPLIT:=train}" # of the router scores; train, as in the paper: as many tokens as the validation split has, spread over it
[[ $FIGURE_4 == [01] ]] || die "FIGURE_4 must be 0 or 1, not $FIGURE_4"
[[ $SPLIT == train || $SPLIT == val ]] || die "SPLIT must be train or val, not $SPLIT"
PROGRAMS=(eval get_ppl_per_mac get_router_weights)
NEEDS_ROUTERS=1
TRAINED_BY=adm-train # whose experiment is evaluated unless --checkpoint names others

# work: and the sweep over compute budgets, and the router scores, which are large
work() {
    local i
    evaluate_all
    for i in "${!FILES[@]}"; do
        ((FIGURE_4)) && [[ ${OF[i]} != "${OF[i + 1]:-}" ]] || continue
        opens "$i"
        python get_ppl_per_mac.py "${OPENS[@]}" --output_dir "$RUN_DIR$(part "${OF[i]}")/exp4" "${FLAGS[@]}"
    done
    set_workspace
    for i in "${!FILES[@]}"; do
        opens "$i"
        python get_router_weights.py "${OPENS[@]}" --output_dir "$WORKSPACE$(place "$i")" --split "$SPLIT" \
            --cascade raw device position token "${FLAGS[@]}"
    done
    draw
}

# figures FOLDER4 FOLDER5 N...: Figures 4 and 5 of those checkpoints together
figures() {
    found ppl_per_mac.json "$RUN_DIR" "${@:3}"
    ((!${#FOUND[@]})) || python plot_fig4.py "${FOUND[@]}" --output_dir "$1"
    found 'router_weights*.npz' "$WORKSPACE" "${@:3}"
    ((${#FOUND[@]})) || die "no router scores are left in $WORKSPACE: evaluate again"
    python plot_fig5.py "${FOUND[@]}" --output_dir "$2"
}

# draw: the figures of all checkpoints together and of each, and the report
draw() {
    local n
    figures "$RUN_DIR" "$RUN_DIR" "${!CHECKPOINTS[@]}"
    if ((${#CHECKPOINTS[@]} > 1)); then
        for n in "${!CHECKPOINTS[@]}"; do figures "$RUN_DIR$(part "$n")/exp4" "$RUN_DIR$(part "$n")/exp5" "$n"; done
    fi
    python -m report "$RUN_DIR" --output "$RUN_DIR"
}

run_evaluation "$@"
