#!/usr/bin/env bash
# The whole product, small, on any machine with Python 3.11+: sets itself up, prepares real text, trains a small
# LN-CoTFormer, stops it half way and resumes it, evaluates it, and prints a table. On a cluster it is a job of a CPU node.
#   bash iridis/quickstart/job.sh [--dry-run] [--local]
# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${ITERATIONS:=300}"   # optimiser steps
: "${BATCH_SIZE:=4}"     # sequences of a micro-batch
: "${ACC_STEPS:=1}"      # micro-batches of a step
: "${SEQUENCE_LENGTH:=128}"
: "${N_EMBD:=128}"
: "${N_REPEAT:=3}"

LOG_FREQ=10
HALF_WAY=$((ITERATIONS / 2 / LOG_FREQ * LOG_FREQ))
((HALF_WAY > 0)) || die "ITERATIONS must be at least $((2 * LOG_FREQ))"
STOPPED=83 # exit code of main.py after a clean stop

# until_logged STEP PID: wait until the training has logged a step, or is over
until_logged() {
    until grep -q "^step $1/" "$RUN_DIR/train.out" || ! kill -0 "$2" 2>/dev/null; do
        sleep 0.2
    done
}

# work: all of it, in the run folder
work() {
    local code experiment
    train=(python main.py --model lncot --dataset stdlib --data_dir "$DATA_DIR"
        --n_layer_begin 2 --n_layer 5 --n_layer_end 1 --n_repeat "$N_REPEAT" --depth_embedding linear_learned
        --n_embd "$N_EMBD" --n_head 4 --sequence_length "$SEQUENCE_LENGTH" --batch_size "$BATCH_SIZE" --acc_steps "$ACC_STEPS"
        --iterations "$ITERATIONS" --lr 1e-3 --warmup_percent 0.1 --log_freq "$LOG_FREQ" --eval_freq 100 --eval_batches 16
        --remove_intermediary_checkpoints_at_end --results_base_folder "$RUN_DIR/exps" --exp_name quickstart)
    : >"$RUN_DIR/train.out"
    "${train[@]}" > >(tee -a "$RUN_DIR/train.out") 2>&1 &
    training=$!
    trap 'kill -TERM "$training" 2>/dev/null || true' EXIT
    trap 'exit 143' INT TERM
    until_logged "$HALF_WAY" "$training"
    printf '=== half way: sending the signal that a job sends itself before its time limit\n'
    kill -USR1 "$training" 2>/dev/null || true
    code=0
    wait "$training" || code=$?
    [[ $code -eq $STOPPED ]] || die "the training ended with code $code instead of stopping cleanly; see $RUN_DIR/train.out"
    printf '=== resuming with the same command\n'
    trap - EXIT INT TERM
    "${train[@]}" 2>&1 | tee -a "$RUN_DIR/train.out"

    printf '=== evaluating\n'
    experiment="$(dirname "$(find "$RUN_DIR/exps" -name summary.json)")"
    python eval.py --checkpoint "$experiment" --output_dir "$RUN_DIR" | tee "$RUN_DIR/eval.out"
    python -m iridis.quickstart.table "$experiment" "$RUN_DIR"
}

run_job "$@"
