#!/usr/bin/env bash
# The paper's models, small, each with several seeds, and a page that says which of its claims these runs confirm (docs/mini-repro/README.md).
# cpu takes an hour on two cores and needs no download; gpu is meant for an hour of one GPU; paper is the paper's own matrix.
#   bash iridis/mini-repro/job.sh [--size cpu|gpu|paper] [--dry-run] [--local] [--max-running N]
# --max-running N   trains at most N models at a time; with --local, as many as there are cores, or GPUs, by default
# Finished models and evaluations are left out: the same command goes on. SWEEP names another sweep file of such models.
LIBRARY="$(dirname "$(readlink -f "$0")")/../lib.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/mini-repro/job.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"

OTHERS=() MAX_RUNNING="${MAX_RUNNING:-}"
while (($#)); do
    case "$1" in
    --size | --max-running)
        [[ $# -ge 2 && -n $2 ]] || die "$1 needs a value"
        if [[ $1 == --size ]]; then MINI_SIZE="$2"; else MAX_RUNNING="$2"; fi
        shift
        ;;
    *) OTHERS+=("$1") ;;
    esac
    shift
done
parse_options "${OTHERS[@]}"

# CONFIGURATION (each can be set in the environment)
: "${MINI_SIZE:=cpu}"
case "$MINI_SIZE" in
cpu | tiny) : "${N_GPUS:=0}" "${CPUS:=2}" "${TIME_LIMIT:=2:00:00}" "${SAMPLE_TOKENS:=65536}" ;; # of a training, and of the evaluation
gpu) : "${N_GPUS:=1}" "${TIME_LIMIT:=2:00:00}" "${MEMORY:=32G}" "${SAMPLE_TOKENS:=262144}" ;;
paper) : "${N_GPUS:=1}" "${TIME_LIMIT:=1-00:00:00}" "${MEMORY:=64G}" "${SAMPLE_TOKENS:=1048576}" ;; # the trainings have 2 GPUs
*) die "--size $(printf '%q' "$MINI_SIZE"): there are cpu, gpu and paper" ;;
esac
: "${SWEEP:=$PACKAGE_DIR/$MINI_SIZE.json}"
SWEEP="$(realpath -ms -- "$SWEEP")"
export MINI_SIZE SWEEP SAMPLE_TOKENS MAX_RUNNING # for the job that evaluates
whole_numbers SAMPLE_TOKENS
[[ -z $MAX_RUNNING || $MAX_RUNNING =~ ^[1-9][0-9]{0,3}$ ]] || die "--max-running needs a number of models, at least 1"
[[ -z $AFTER && $PIN_CODE == 0 ]] || die "mini-repro has no --after and no --pin-code"
((!${#FLAGS[@]})) || die "what is trained is said in $SWEEP alone, not after --"
TRAINING_GPUS="$N_GPUS"
[[ $MINI_SIZE != paper ]] || TRAINING_GPUS=2
ARRAYS=""       # ids of jobs that train, joined by :
CHILD=""        # the process that this shell waits for
IS_ASKED_TO_END=0
SBATCH_OPTIONS="--signal=B:USR1@$LEAD $SBATCH_OPTIONS"

# ask_to_end: for traps; what runs saves what it has, and ends
ask_to_end() {
    IS_ASKED_TO_END=1 WOKEN=1
    [[ -z $CHILD ]] || kill -TERM "$CHILD" 2>/dev/null || true
}

# ended_early: the same command, or this very job, goes on
ended_early() {
    REPORTED=1
    # without that signal a person has cancelled the job, or SLURM itself starts it again
    if [[ $HOW == segment ]] && ((IS_ASKED_TO_END)) && scontrol requeue "$SLURM_JOB_ID"; then
        printf '=== the time is up: SLURM starts this job again, and it goes on\n'
        sleep 60 # SLURM ends it meanwhile
    fi
    printf '=== stopped; the same command goes on\n' >&2
    exit 83
}

# step WORDS...: run a command; all that it has started ends where this shell does. Returns its exit code.
step() {
    local code=0
    ((!IS_ASKED_TO_END)) || ended_early
    run_and_wait "$INTERPRETER" -m iridis.stages "$$" "$@" || code=$?
    ((!IS_ASKED_TO_END && code != 83)) || ended_early
    return "$code"
}

# default_at_once: fill MAX_RUNNING of a run here: a model for each core, or GPU
default_at_once() {
    [[ -z $MAX_RUNNING ]] || return 0
    MAX_RUNNING="$(env -u OMP_NUM_THREADS nproc)"
    # shellcheck disable=SC2154  # run_job has counted the GPUs that are here
    ((!N_GPUS)) || MAX_RUNNING="$((here > 0 ? here : 1))"
}

# sweep_words WORDS...: fill TRAIN, the call of the package that trains the models
sweep_words() {
    TRAIN=(env N_GPUS="$TRAINING_GPUS" CPUS="$((TRAINING_GPUS ? 8 * TRAINING_GPUS : 1))" TIME_LIMIT="$TIME_LIMIT" MEMORY="$MEMORY"
        bash "$REPO_DIR/iridis/sweep/job.sh" "$SWEEP" ${MAX_RUNNING:+--max-running "$MAX_RUNNING"} "$@")
}

# find_text: fill TEXT, the call that prepares the text, where it is built in, and says how much of its validation part is in its
# training part
find_text() {
    local dataset
    dataset="$(python -m iridis.evaluate_cells "$SWEEP" --dataset)" || exit $?
    mkdir -p "$SCRATCH_DIR/mini-repro" 2>/dev/null || die "cannot make $SCRATCH_DIR/mini-repro; set SCRATCH_DIR to a folder of yours"
    OVERLAP="$SCRATCH_DIR/mini-repro/overlap_$(basename "$dataset").json"
    TEXT=(python -m data.overlap "$dataset" --data_dir "$DATA_DIR" --output "$OVERLAP")
}

# evaluate_words: fill EVALUATE and PAGE, the calls that follow the trainings
evaluate_words() {
    EVALUATE=(python -m iridis.evaluate_cells "$SWEEP" --at_once "${MAX_RUNNING:-1}" --sample_tokens "$SAMPLE_TOKENS")
    PAGE=(python -m report claims "$SWEEP" --output "$RUN_DIR")
}

# machine: what the run was made on, and the seconds of this call alone: those of all trainings are in segments.jsonl
machine() {
    printf 'machine   %s, %s cores\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)"
    nvidia-smi -L 2>/dev/null || true
    printf 'this call %s seconds; what earlier calls had finished is not in them\n' "$SECONDS"
}

# work: the text, the models (where they are not an array's), their evaluations, the page. A model that fails takes only itself away.
work() {
    local code=0
    INTERPRETER="$(python -c 'import sys; print(sys.executable)')" # no wrapper: this shell must be its parent
    trap ask_to_end USR1
    [[ $HOW == segment ]] || trap ask_to_end INT TERM HUP
    find_text
    step "${TEXT[@]}" || exit $?
    cp -f -- "$OVERLAP" "$RUN_DIR/text.json" 2>/dev/null || die "cannot write $RUN_DIR/text.json"
    if [[ $HOW == local ]]; then
        default_at_once
        sweep_words --local
        step "${TRAIN[@]}" || code=$?
        ((code != 2)) || exit 2
    fi
    evaluate_words
    step "${EVALUATE[@]}" || code=$?
    machine >"$RUN_DIR/machine.txt"
    step "${PAGE[@]}" || exit $?
    printf '=== %s\n' "$RUN_DIR/claims.html"
    REPORTED=1 # each model that is missing has been named
    ((!code)) || exit "$code"
}

commands() {
    local RUN_DIR="$PACKAGE_DIR/run_N"
    find_text
    [[ $HOW != local ]] || default_at_once
    evaluate_words
    if [[ $HOW == local ]]; then
        quoted "${TEXT[@]}"
        sweep_words --local
        quoted "${TRAIN[@]}"
        sweep_words --local --dry-run
        "${TRAIN[@]}"
    fi
    quoted "${EVALUATE[@]}"
    "${EVALUATE[@]}" --dry-run
    quoted "${PAGE[@]}"
}

before_local() { python -m iridis.evaluate_cells "$SWEEP" --dataset >/dev/null || exit $?; }

# identify: one evaluation of a sweep at a time
identify() { name_job "$SWEEP"; }
SINGLETON=1

# before_submit: prepare the text, and submit the models
before_submit() {
    local QUEUED="" old
    ensure_environment
    identify
    find_text
    if ((DRY_RUN)); then
        quoted "${TEXT[@]}"
        sweep_words --dry-run
        "${TRAIN[@]}" || exit $?
        return
    fi
    [[ ${TEXT[3]} != *-apart ]] || "${TEXT[@]}" || exit $? # any other must be there, and is large
    sweep_words
    "${TRAIN[@]}" || exit $?
    read_values QUEUED < <(python -m iridis.cells "$SWEEP" --slurm 2>/dev/null)
    ARRAYS="$QUEUED"
    for old in $(squeue -h --me --name="$JOB_NAME" --states=PENDING -o %i 2>/dev/null || true); do
        printf 'cancelled:    job %s, an evaluation that waited for fewer models\n' "$old"
        scancel "$old" || true
    done
}

# dependency: a model that failed must not take the page of the others away
dependency() { printf 'singleton%s\n' "${ARRAYS:+,afterany:$ARRAYS}"; }

run_job "$@"
