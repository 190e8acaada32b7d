#!/usr/bin/env bash
# LN-CoTFormer, 2 -> 21 x 5 -> 1: row 4 of Table 2; with ITERATIONS=60000 that of Section 5.
#   bash iridis/lncot-train/job.sh [--dry-run] [--local] [--chain N] [--pin-code] [--after JOBID] [--name EXP] [-- flags for main.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/lncot-train/job.sh" >&2; exit 2; }
# shellcheck source=iridis/train.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment; the rest of the paper's setting is in iridis/train.sh)
# N_GPUS is of a node; --gres and the number of processes follow
: "${N_GPUS:=2}" "${N_NODES:=1}" "${ITERATIONS:=40000}" "${N_LAYER:=24}" "${N_REPEAT:=5}"
: "${KEEP_STEPS=40000}" # whose checkpoints stay, separated by spaces; Section 5 compares 40,000 with 60,000 steps

MODEL_FLAGS=(--model cotformer_full_depth_lnmid_depthemb --n_layer "$N_LAYER" --n_layer_begin 2 --n_layer_end 1
    --n_repeat "$N_REPEAT" --depth_embedding linear_learned)

run_training "$@"
