#!/usr/bin/env bash
# The whole product, small, on any machine with Python 3.11+: sets itself up, prepares real text, trains a small LN-CoTFormer
# (stopped half way and resumed) and a small adaptive one, evaluates both, draws Figures 4 and 5, writes the report, and
# prints a table. On a cluster it is a job of a CPU node.
#   bash iridis/quickstart/job.sh [--dry-run] [--local]
LIBRARY="$(dirname "$(readlink -f "$0")")/../lib.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/quickstart/job.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${ITERATIONS:=300}"   # optimiser steps
: "${ADAPTIVE_ITERATIONS:=150}" # of the adaptive model
: "${SWEEP_TOKENS:=16384}" # validation tokens for each point of Figure 4, and for Figure 5
: "${BATCH_SIZE:=4}"     # sequences of a micro-batch
: "${ACC_STEPS:=1}"      # micro-batches of a step
: "${SEQUENCE_LENGTH:=128}"
: "${N_EMBD:=128}"
: "${N_REPEAT:=3}"

LOG_FREQ=10
whole_numbers ITERATIONS ADAPTIVE_ITERATIONS SWEEP_TOKENS BATCH_SIZE ACC_STEPS SEQUENCE_LENGTH N_EMBD N_REPEAT
HALF_WAY=$((ITERATIONS / 2 / LOG_FREQ * LOG_FREQ))
((HALF_WAY > 0)) || die "ITERATIONS must be at least $((2 * LOG_FREQ))"
STOPPED=83 # exit code of main.py after a clean stop

# until_logged STEP PID: wait until the training has logged a step, or is over
until_logged() {
    until grep -q "^step $1/" "$RUN_DIR/train.out" || ! kill -0 "$2" 2>/dev/null; do
        sleep 0.2
    done
}

# common_flags: fill COMMON, what both trainings share
common_flags() {
    COMMON=(--dataset stdlib --data_dir "$DATA_DIR" --n_layer_begin 2 --n_layer 5 --n_layer_end 1 --n_repeat "$N_REPEAT"
        --depth_embedding linear_learned --n_embd "$N_EMBD" --n_head 4 --sequence_length "$SEQUENCE_LENGTH"
        --batch_size "$BATCH_SIZE" --acc_steps "$ACC_STEPS" --lr 1e-3 --warmup_percent 0.1 --log_freq "$LOG_FREQ" --eval_freq 100
        --eval_batches 16 --remove_intermediary_checkpoints_at_end --results_base_folder "$RUN_DIR/exps")
}

LEFT_BEHIND="" # the training, while it runs
leaving() {
    [[ -z $LEFT_BEHIND ]] || kill -TERM "$LEFT_BEHIND" 2>/dev/null || true
}

# train_and_resume COMMAND...: send the signal that a job gets before its time limit half way, then run the command again
train_and_resume() {
    local training code=0
    : >"$RUN_DIR/train.out"
    "$@" > >(tee -a "$RUN_DIR/train.out") 2>&1 &
    training=$!
    LEFT_BEHIND="$training"
    trap 'exit 143' INT TERM
    until_logged "$HALF_WAY" "$training"
    printf '=== half way: sending the signal that a job sends itself before its time limit\n'
    kill -USR1 "$training" 2>/dev/null || true
    wait "$training" || code=$?
    [[ $code -eq $STOPPED || $code -eq 0 ]] || die "the training ended with code $code instead of stopping cleanly; see $RUN_DIR/train.out"
    LEFT_BEHIND=""
    trap - INT TERM
    printf '=== resuming with the same command\n'
    "$@" 2>&1 | tee -a "$RUN_DIR/train.out"
}

# work: all of it, in the run folder
work() {
    local plain adaptive="$RUN_DIR/adaptive"
    mkdir -p "$adaptive" # a requeued job has it already
    common_flags
    train_and_resume python main.py --model lncot --iterations "$ITERATIONS" --exp_name quickstart "${COMMON[@]}"
    printf '=== the adaptive model\n'
    python main.py --model adm --iterations "$ADAPTIVE_ITERATIONS" --exp_name adaptive "${COMMON[@]}" 2>&1 | tee -a "$RUN_DIR/train.out"

    printf '=== evaluating\n'
    plain="$(echo "$RUN_DIR"/exps/stdlib/*/quickstart)"
    python eval.py --checkpoint "$plain" --output_dir "$RUN_DIR" | tee "$RUN_DIR/eval.out"
    set -- --checkpoint "$RUN_DIR"/exps/stdlib/*/adaptive --output_dir "$adaptive"
    python eval.py "$@" | tee "$adaptive/eval.out"
    printf '=== perplexity at every compute budget, and what the routers think of each token\n'
    python get_ppl_per_mac.py "$@" --eval_sample_size "$SWEEP_TOKENS" --router_sample_size "$SWEEP_TOKENS"
    python get_router_weights.py "$@" --eval_sample_size "$SWEEP_TOKENS" --cascade raw device position token
    python plot_fig4.py "$adaptive/ppl_per_mac.json" --output_dir "$RUN_DIR"
    python plot_fig5.py "$adaptive"/router_weights_*.npz --output_dir "$RUN_DIR"
    python -m report "$RUN_DIR" --output "$RUN_DIR" | into "$RUN_DIR/report.out"
    python -m iridis.quickstart.table "$plain" "$RUN_DIR"
}

# shellcheck disable=SC2329  # `work` calls it
commands() (
    train_and_resume() { "$@" && "$@"; }
    commands_of_work
)

run_job "$@"
