#!/usr/bin/env bash
# A modern GPT of depth 12, 20 or 26, from which width, batch, steps, rates and weight decay follow; cpu: of depth 4, 20 steps, on
# texts that come with Python.
#   bash iridis/gpt-train/job.sh d12|d20|d26|cpu [--dry-run] [--local] [--chain N] [--pin-code] [--after JOBID] [--name EXP] [-- flags for main.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/gpt-train/job.sh" >&2; exit 2; }
# shellcheck source=iridis/train.sh
. "$LIBRARY"
parse_options "$@"
TAKES_WORDS=1

# CONFIGURATION (each can be set in the environment; SEED, ITERATIONS and EVAL_FREQ too, which are otherwise those of the recipe)
: "${N_NODES:=1}" "${TIME_LIMIT:=24:00:00}" # N_GPUS is of a node; --gres and processes follow
: "${DEVICE_BATCH_SIZE:=}"                  # sequences of a micro-batch on one GPU; the batch of a step stays the same
: "${DATASET:=}"                            # any prepared dataset; its vocabulary: -- --vocab_size N
: "${PACKING:=best_fit}"                    # of d12, d20, d26; none for tokens without one that ends documents

PRESET="${WORDS[*]:-d12}"
case $PRESET in
    d12 | d20 | d26) SIZE=(--packing "$PACKING" --depth "${PRESET#d}" --dataset "${DATASET:-owt2}") ;;
    cpu) SIZE=(--config recipes/presets/gpt_cpu.json ${DATASET:+--dataset "$DATASET"}) N_GPUS=1 ;;
    *) die "say which size: d12, d20, d26 or cpu, not $(printf '%q' "$PRESET")" ;;
esac

setting() {
    recipe_flags gpt "${SIZE[@]}" ${DEVICE_BATCH_SIZE:+--batch_size "$DEVICE_BATCH_SIZE"}
    [[ $PRESET == cpu || $PACKING == none ]] || FORMERLY=(gpt --packing none) # before there was packing
}
MODEL_FLAGS=() # the recipe's own
run_training "$@"
