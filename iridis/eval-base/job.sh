#!/usr/bin/env bash
# Tables 1, 4 and 5, Figures 2 and 3: perplexity of models of base-train and ablation-train on the whole validation split. The words of
# such a training name one model (cot 12x5, pondernet); without words and --checkpoint, all that are trained on DATASET are evaluated.
#   bash iridis/eval-base/job.sh [MODEL SIZE | ABLATION] [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint DIR_OR_FILE]... [--replot] [-- flags for eval.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../evaluate.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/eval-base/job.sh" >&2; exit 2; }
# shellcheck source=iridis/evaluate.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=8:00:00}" "${DATASET:=owt2}"
TRAINED_BY=base-train # whose experiment is evaluated where words name a model
((${#WORDS[@]} != 1)) || TRAINED_BY=ablation-train

# choose_checkpoints: of no model in particular, those of all that are trained; says which of Table 1 are not
choose_checkpoints() {
    local found
    [[ -z "$NAME${WORDS[*]}${CHECKPOINTS[*]}" ]] || return 0
    [[ -d $RESULTS_DIR ]] || die "nothing is trained: there is no folder $RESULTS_DIR"
    found="$(python -m report.trained "$RESULTS_DIR" --dataset "$DATASET")" || exit $?
    mapfile -t CHECKPOINTS <<<"$found"
    for _ in "${CHECKPOINTS[@]}"; do LABELS+=(""); done
}

# draw: of all that this package has evaluated, in whichever run
draw() {
    local runs
    runs="$(dirname "$RUN_DIR")"
    python plot_fig2.py "$runs" --output_dir "$RUN_DIR"
    python plot_fig3.py --output_dir "$RUN_DIR"
    python -m report "$runs" --output "$RUN_DIR"
}

run_evaluation "$@"
