#!/usr/bin/env bash
# A model of Table 1: MODEL is base, but or cot; SIZE is its layers, for but and cot times its repeats (base 12, cot 12x5).
#   bash iridis/base-train/job.sh MODEL SIZE [--dry-run] [--local] [--chain N] [--after JOBID] [--name EXP] [-- flags for main.py]
# shellcheck source=iridis/train.sh
source "$(dirname "${BASH_SOURCE[0]}")/../train.sh"
parse_options "$@"

# CONFIGURATION (each can be set in the environment; the rest of the paper's setting is in iridis/train.sh)
: "${N_GPUS:=2}" "${N_NODES:=1}" # of a node, and nodes; --gres and the number of processes follow
: "${ITERATIONS:=40000}"

case "${WORDS[*]}" in
"base 12" | "base 24" | "base 48") MODEL_FLAGS=(--model base --n_layer "${WORDS[1]}") ;;
"but 12x"[235] | "but 24x"[235] | "cot 12x"[235] | "cot 24x"[235])
    MODEL_FLAGS=(--model "${WORDS[0]}" --n_layer "${WORDS[1]%x*}" --n_repeat "${WORDS[1]#*x}" --min_repeat "${WORDS[1]#*x}") ;;
*) die "say which model of Table 1: base 12|24|48, but|cot 12x2|12x3|12x5|24x2|24x3|24x5" ;;
esac

run_training "$@"
