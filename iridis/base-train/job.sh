#!/usr/bin/env bash
# A model of Table 1, or like those: MODEL is base, but or cot; SIZE is its layers, for but and cot times its repeats (base 12,
# cot 12x5).
#   bash iridis/base-train/job.sh MODEL SIZE [--dry-run] [--local] [--chain N] [--pin-code] [--after JOBID] [--name EXP] [-- flags for main.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/base-train/job.sh" >&2; exit 2; }
# shellcheck source=iridis/train.sh
. "$LIBRARY"
parse_options "$@"
TAKES_WORDS=1

# CONFIGURATION (each can be set in the environment; the rest of the paper's setting is in iridis/train.sh)
: "${N_GPUS:=2}" "${N_NODES:=1}" # of a node, and nodes; --gres and the number of processes follow
: "${ITERATIONS:=40000}"

if [[ ${WORDS[*]} =~ ^base\ ([1-9][0-9]*)$ ]]; then
    MODEL_FLAGS=(--model base --n_layer "${BASH_REMATCH[1]}")
elif [[ ${WORDS[*]} =~ ^(but|cot)\ ([1-9][0-9]*)x([1-9][0-9]*)$ ]]; then
    MODEL_FLAGS=(--model "${BASH_REMATCH[1]}" --n_layer "${BASH_REMATCH[2]}" --n_repeat "${BASH_REMATCH[3]}" --min_repeat "${BASH_REMATCH[3]}")
else
    die "say which model: base LAYERS, but|cot LAYERSxREPEATS; those of Table 1 are base 12|24|48, but|cot 12x2|12x3|12x5|24x2|24x3|24x5"
fi

run_training "$@"
