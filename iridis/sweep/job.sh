#!/usr/bin/env bash
# A sweep: a grid, a list or a random sample of flags (docs/sweeps.md) as one job array, whose tasks are trainings that go on,
# each by itself, until they are finished. Finished and queued cells are left out, so that the same command takes up what failed,
# or was added to the file.
#   bash iridis/sweep/job.sh SWEEP.json [--dry-run] [--local] [--max-running N] [--chain N] [--pin-code] [--after JOBID]
# --max-running N   trains at most N cells of an array at a time; with --local, one by default
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/sweep/job.sh" >&2; exit 2; }
: "${CHAIN_BY:=requeue}" # a task keeps its place in the array, whose --max-running then holds
# shellcheck source=iridis/train.sh
. "$LIBRARY"

MAX_RUNNING="" OTHERS=()
for ((n = 1; n <= $#; n++)); do
    if [[ ${!n} == --max-running ]]; then
        n=$((n + 1))
        ((n <= $#)) && [[ ${!n} =~ ^[1-9][0-9]{0,3}$ ]] || die "--max-running needs a number of cells, at least 1"
        MAX_RUNNING="${!n}"
    else
        OTHERS+=("${!n}")
    fi
done
parse_options "${OTHERS[@]}"
TAKES_WORDS=1

# CONFIGURATION (each can be set in the environment)
# of each cell; N_GPUS is of a node; --gres and processes follow
: "${N_GPUS:=1}" "${N_NODES:=1}" "${TIME_LIMIT:=12:00:00}" "${MEMORY:=32G}"

unset -f where # a sweep has many experiments
if [[ $HOW == segment ]]; then
    # of an array, the word is the number of the cell that its first task trains
    ((!${#WORDS[@]})) || RUN_DIR+="/cell_$((WORDS[0] + SLURM_ARRAY_TASK_ID))"
    WORDS=() FORMERLY=()
    mapfile -d '' -t TRAIN_FLAGS <"$RUN_DIR/words"
else
    ((!${#FLAGS[@]})) && [[ -z $NAME ]] || die "what the cells are is said in the file alone, not by --name nor after --"
    ((${#WORDS[@]} == 1)) || die "say which sweep: bash iridis/sweep/job.sh SWEEP.json"
    SWEEP="$(realpath -ms -- "${WORDS[0]}")"
fi

# notify SUBJECT BODY: of a cell that stopped; those that finish are many
eval "person_is_told() $(declare -f notify | tail -n +2)"
notify() { [[ $1 == *": finished" ]] || person_is_told "$@"; }

# cells WORDS...: of the sweep, by the program that decides which of them are to be trained
cells() {
    python -m iridis.cells "$SWEEP" --processes "$((PROCESSES * N_NODES))" --time "$TIME_LIMIT" "$@"
}

# plan WORDS...: the same; sets SWEEP_NAME, RUN_DIR, ARRAYS, QUEUED, LEFT_OUT and LEAD
plan() {
    local answer
    ARRAYS="" QUEUED="" LEFT_OUT=0
    answer="$(cells "$@")" || exit $?
    read_values SWEEP_NAME RUN_DIR ARRAYS QUEUED LEFT_OUT LEAD <<<"$answer"
    JOB_NAME="sweep-$(tr -c 'A-Za-z0-9._=\n-' _ <<<"$SWEEP_NAME")"
}

# begin_run: keep the command
begin_run() {
    record_run "$RUN_DIR" bash "$JOB_SCRIPT" "${ARGUMENTS[@]}"
    printf 'run folder:   %s\n' "$RUN_DIR"
}

# before_local: train the cells here, as many at a time as --max-running says
before_local() {
    local words=()
    ! has_slurm || words+=(--slurm)
    ((DRY_RUN)) || words+=(--package "$PACKAGE_DIR")
    plan "${words[@]}"
    ((!DRY_RUN)) || return 0
    [[ -n $ARRAYS ]] || exit $((LEFT_OUT > 0))
    begin_run
    # shellcheck disable=SC2154  # run_job has counted the GPUs that are here
    exec python -m iridis.cells_here "$RUN_DIR" --at_once "${MAX_RUNNING:-1}" --processes "$PROCESSES" --gpus "$((N_GPUS ? here : 0))"
}
commands() { :; }

state() {
    ensure_environment >&2
    local words=(--state)
    ! has_slurm || words+=(--slurm)
    cells "${words[@]}"
}

# submit_job: one array, or several where the cluster's are smaller
submit_job() {
    local each id ids=() words SINGLETON=0
    AFTER="$(latest_jobs "$AFTER")" || exit $?
    ensure_environment
    words=(--slurm --partition "$PARTITION" --nodes "$N_NODES" --gpus "$N_GPUS" ${AFTER:+--no-data})
    RUN_DIR="$PACKAGE_DIR/run_N"
    sbatch_words # its complaints come before anything is made
    ((DRY_RUN)) || words+=(--package "$PACKAGE_DIR")
    ((!PIN_CODE)) || words+=(--pin)
    # another submission at this moment would not find these cells in the queue
    if ((!DRY_RUN)) && { exec 8>>"$PACKAGE_DIR/.lock"; } 2>/dev/null; then flock -w 300 8 2>/dev/null || true; fi
    plan "${words[@]}"
    if [[ -z $ARRAYS ]]; then
        [[ -z $QUEUED ]] || printf 'job:          %s (in the queue already)\n' "$QUEUED"
        printf 'nothing to submit\n'
        return
    fi
    if ((!DRY_RUN)); then
        begin_run
        ((!PIN_CODE)) || pin_code
        AFTER="$(latest_jobs "$AFTER")" || exit $? # a chain may have gone on in another job while all this was done
    fi
    for each in $ARRAYS; do
        # the word of a segment is the number of the cell that task 0 trains
        IFS=: read -r "WORDS[0]" ARRAY LOGS <<<"$each"
        ARRAY+="${MAX_RUNNING:+%$MAX_RUNNING}" LOGS+="/slurm_%A_%a"
        if ((DRY_RUN)); then
            sbatch_words
            segment_words
            printf 'would submit: %s\n' "$(quoted "${SBATCH[@]}")"
            printf 'which runs:   %s\n' "$(quoted "${SEGMENT[@]}")"
            try_sbatch
        elif id="$(hand_to_slurm)"; then
            printf '%s %s\n' "$id" "${WORDS[0]}" >>"$RUN_DIR/arrays.txt"
            ids+=("$id")
            follow_chains "$id"
        else
            printf 'sbatch refused the array %s\n' "$each" >>"$RUN_DIR/not_submitted.txt"
            die "sbatch refused an array of cells${ids[*]:+ (submitted are: ${ids[*]})}, see above; $(account_hint)"
        fi
    done
    ((!DRY_RUN)) || return 0
    id="$(IFS=: && printf '%s\n' "${ids[*]}")"
    printf '%s\n' "$id" >"$RUN_DIR/first_job.txt"
    printf 'job:          %s (%s)\n' "$id${QUEUED:+:$QUEUED}" "$JOB_NAME"
    printf 'watch:        python status.py --sweep %q; squeue -j %s\n' "$SWEEP" "${id//:/,}"
    printf 'stop:         bash %q %s\n' "$CLONE_DIR/iridis/cancel.sh" "${ids[0]}"
}

run_job "$@"
