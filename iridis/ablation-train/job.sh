#!/usr/bin/env bash
# A model of Table 4 without depth embedding (lncot-no-embedding, adm-no-embedding), or one of Table 5 (pondernet, stick-breaking,
# mixture-of-repeats; 10,000 steps): 2 -> 21 x 5 -> 1, with the published flags.
#   bash iridis/ablation-train/job.sh NAME [--dry-run] [--local] [--chain N] [--pin-code] [--after JOBID] [--name EXP] [-- flags for main.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/ablation-train/job.sh" >&2; exit 2; }
# shellcheck source=iridis/train.sh
. "$LIBRARY"
parse_options "$@"
TAKES_WORDS=1

# CONFIGURATION (each can be set in the environment; the rest of the paper's setting is in iridis/train.sh)
# N_GPUS is of a node; --gres and the number of processes follow. ITERATIONS is 40000, and 10000 for Table 5
: "${N_GPUS:=2}" "${N_NODES:=1}" "${N_LAYER:=24}" "${N_REPEAT:=5}"

case "${WORDS[*]}" in
lncot-no-embedding) MODEL_FLAGS=(--model cotformer_full_depth_lnmid_depthemb) ;;
adm-no-embedding) # as adm-train, so that the two differ in the depth embedding alone
    MODEL_FLAGS=(--model adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final
        --depth_random_method uniform_random_range)
    ;;
pondernet)
    : "${ITERATIONS:=10000}"
    MODEL_FLAGS=(--model pondernet --ponder_lambda_p 0.4 --ponder_kl_div_loss_weight 0.2)
    ;;
stick-breaking) # its penalty depends on the cut of the batch: the published one, for which 24 GB should do with recomputation
    : "${ITERATIONS:=10000}" "${BATCH_SIZE:=32}" "${ACC_STEPS:=4}"
    MODEL_FLAGS=(--model but_halting_freeze_input_on_stop --depth_random_method sb_act --activation_checkpointing pass)
    ;;
mixture-of-repeats)
    : "${ITERATIONS:=10000}"
    MODEL_FLAGS=(--model but_mod_efficient_sigmoid_lnmid_depthemb_random_factor --disable_ln_mid)
    ;;
*) die "say which ablation: lncot-no-embedding, adm-no-embedding, pondernet, stick-breaking or mixture-of-repeats" ;;
esac
MODEL_FLAGS+=(--n_layer "$N_LAYER" --n_layer_begin 2 --n_layer_end 1 --n_repeat "$N_REPEAT")

run_training "$@"
