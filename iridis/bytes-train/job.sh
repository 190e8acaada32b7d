#!/usr/bin/env bash
# A byte-level GPT on a mixture of sources: smoke takes 1,000 steps, train 20,000. By default it reads the texts that come with
# Python and the installed packages, so that nothing is downloaded.
#   bash iridis/bytes-train/job.sh [smoke|train] [--dry-run] [--local] [--chain N] [--pin-code] [--after JOBID] [--name EXP] [-- flags for main.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/bytes-train/job.sh" >&2; exit 2; }
# shellcheck source=iridis/train.sh
. "$LIBRARY"
parse_options "$@"
TAKES_WORDS=1

# CONFIGURATION (each can be set in the environment; SEED, ITERATIONS and EVAL_FREQ too, which are otherwise those of the preset)
: "${N_GPUS:=1}" "${N_NODES:=1}" "${TIME_LIMIT:=4:00:00}" "${MEMORY:=32G}" # N_GPUS is of a node; --gres and processes follow
: "${DATASET:=lib_code=0.784,lib_docs=0.196,lib_licenses=0.02}" # any prepared datasets of bytes, with their shares
: "${TRACK:=}" # best.pt has the best value of this; by default, the loss of wiki, else of the first source

PRESET="${WORDS[*]:-smoke}"
[[ $PRESET == smoke || $PRESET == train ]] || die "say which preset: smoke (1,000 steps) or train (20,000), not $(printf '%q' "$PRESET")"

setting() { recipe_flags bytes --config "recipes/presets/bytes_$PRESET.json" --dataset "$DATASET" ${TRACK:+--track "$TRACK"}; }
MODEL_FLAGS=() # the recipe's own
run_training "$@"
