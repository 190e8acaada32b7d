#!/usr/bin/env bash
# Times to the common ancestors of haplotypes: trains a preset (narrow, broad, broad_w200, residual, w200_wmissing, or one of those
# that a CPU can train, tiny...) on pairs that data.genomes.preprocess has made. In a graph, `-- --checkpoint @STAGE` or
# `-- --adapter --resume-adapter @STAGE` begins with the weights of another stage.
#   bash iridis/coalescence-train/job.sh [PRESET] [--dry-run] [--local] [--chain N] [--pin-code] [--after JOBID] [--name EXP] [-- flags for main.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/coalescence-train/job.sh" >&2; exit 2; }
# shellcheck source=iridis/train.sh
. "$LIBRARY"
parse_options "$@"
TAKES_WORDS=1

# CONFIGURATION (each can be set in the environment; ITERATIONS, SEED and EVAL_FREQ too, which are otherwise those of the recipe)
: "${N_GPUS:=2}" "${N_NODES:=1}" "${TIME_LIMIT:=24:00:00}" # N_GPUS is of a node; --gres and processes follow
: "${DATASET:=processed}"                                  # a prepared set below $DATA_DIR, or a path
: "${EPOCHS:=}" "${LR:=}"                                  # by default, those of the recipe
: "${CKPT_FREQ:=500}"                                      # steps from one checkpoint to the next

((${#WORDS[@]} <= 1)) || die "one preset, not $(printf '%q ' "${WORDS[@]}")"
setting() {
    recipe_flags coalescence --model "${WORDS[0]:-broad}" --dataset "$DATASET" ${EPOCHS:+--epochs "$EPOCHS"} ${LR:+--lr "$LR"} \
        --save_checkpoint_freq "$CKPT_FREQ"
}
MODEL_FLAGS=() # the recipe's own
run_training "$@"
