#!/usr/bin/env bash
# Adaptive LN-CoTFormer (Mixture of Repeats), 2 -> 21 x up to 5 -> 1: Section 5, Figures 4 and 5.
#   bash iridis/adm-train/job.sh [--dry-run] [--local] [--chain N] [--pin-code] [--after JOBID] [--name EXP] [-- flags for main.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/adm-train/job.sh" >&2; exit 2; }
# shellcheck source=iridis/train.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment; the rest of the paper's setting is in iridis/train.sh)
# N_GPUS is of a node; --gres and the number of processes follow
: "${N_GPUS:=2}" "${N_NODES:=1}" "${ITERATIONS:=60000}" "${N_LAYER:=24}" "${N_REPEAT:=5}"
: "${KEEP_STEPS=40000}" # whose checkpoints stay, separated by spaces; Section 5 compares 40,000 with 60,000 steps

MODEL_FLAGS=(--model adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final
    --n_layer "$N_LAYER" --n_layer_begin 2 --n_layer_end 1 --n_repeat "$N_REPEAT" --depth_embedding linear_learned
    --depth_random_method uniform_random_range)

run_training "$@"
