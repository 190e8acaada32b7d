#!/usr/bin/env bash
# Coalescence times: error, correlation and calibration of checkpoints on their test pairs, and a page beside the reported values. A label
# (narrow broad broad_w200 w200_wmissing broad_adapter w200_wmissing_adapter) says which one a checkpoint is; without --checkpoint, those of
# the six that are trained below $RESULTS_DIR under these names, behind PREFIX. Words name one training of coalescence-train.
#   bash iridis/coalescence-eval/job.sh [MODEL] [--dry-run] [--local] [--after JOBID] [--name EXP] [--checkpoint LABEL=DIR_OR_FILE...] [--replot] [-- flags for eval.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../evaluate.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/coalescence-eval/job.sh" >&2; exit 2; }
# shellcheck source=iridis/evaluate.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=1}" "${TIME_LIMIT:=12:00:00}"
: "${PREFIX:=}" # tiny_: those of the tiny graph
TRAINED_BY=coalescence-train # whose experiment is evaluated where words or --name say so
DRAWS="" # of an evaluation that runs here: where its draws are, so far
SIX=(narrow broad broad_w200 w200_wmissing broad_adapter w200_wmissing_adapter)

# choose_checkpoints: of no training in particular, those of the six that are there
choose_checkpoints() {
    local label place
    [[ -z "$NAME${WORDS[*]}${CHECKPOINTS[*]}" ]] || return 0
    for label in "${SIX[@]}"; do
        for place in "$RESULTS_DIR"/*/*/"$PREFIX$label"; do
            [[ ! -e $place/ckpt.pt ]] || { CHECKPOINTS+=("$place") LABELS+=("$label"); break; }
        done
    done
    ((${#CHECKPOINTS[@]})) || die "none of the six is trained below $RESULTS_DIR (${SIX[*]/#/$PREFIX}): bash iridis/pipeline.sh coalescence trains them, or give --checkpoint LABEL=DIR_OR_FILE"
}

# draw: the page of all checkpoints
draw() {
    python -m report coalescence "$RUN_DIR" --output "$RUN_DIR"
}

# work: draws are kept on the scratch until all is done, so that the same command goes on after a kill, in whichever run folder
work() {
    DRAWS="$SCRATCH_DIR/analysis_workspace/$(basename "$PACKAGE_DIR")/draws-$(stage_words | sha256sum | cut -c1-16)"
    OWN_FLAGS=(--draws_dir "$DRAWS")
    evaluate_all
    draw
}

run_evaluation "$@"
[[ -z $DRAWS || ! -e $RUN_DIR/done ]] || rm -rf -- "$DRAWS"
