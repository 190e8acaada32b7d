#!/usr/bin/env bash
# A sweep: a grid, a list or a random sample of flags (docs/sweeps.md) as one job array, whose tasks are trainings that go on,
# each by itself, until they are finished. Finished and queued cells are left out, so that the same command takes up what failed,
# or was added to the file.
#   bash iridis/sweep/job.sh SWEEP.json [--dry-run] [--local] [--max-running N] [--chain N] [--pin-code] [--after JOBID]
# --max-running N   trains at most N cells at a time; with --local, one by default
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
    WORDS=()
else
    ((!${#FLAGS[@]})) && [[ -z $NAME ]] || die "what the cells are is said in the file alone, not by --name nor after --"
    ((${#WORDS[@]} == 1)) || die "say which sweep: bash iridis/sweep/job.sh SWEEP.json"
    SWEEP="$(realpath -ms -- "${WORDS[0]}")"
fi

# fill_flags: of a cell
fill_flags() { mapfile -d '' -t TRAIN_FLAGS <"$RUN_DIR/words"; FORMERLY=(); }

# notify SUBJECT BODY: of a cell that stopped; those that finish are many
eval "person_is_told() $(declare -f notify | tail -n +2)"
notify() { [[ $1 == *": finished" ]] || person_is_told "$@"; }

# cells WORDS...: of the sweep, by the program that decides which of them are to be trained
cells() {
    python -m iridis.cells "$SWEEP" --processes "$((PROCESSES * N_NODES))" --time "$TIME_LIMIT" "$@"
}

# plan WORDS...: the same; sets SWEEP_NAME, RUN_DIR, ARRAYS, QUEUED and LEAD
plan() {
    local answer
    answer="$(cells --slurm --partition "$PARTITION" --nodes "$N_NODES" --gpus "$N_GPUS" ${AFTER:+--no-data} "$@")" || exit $?
    ARRAYS="" QUEUED=""
    read_values SWEEP_NAME RUN_DIR ARRAYS QUEUED LEAD <<<"$answer"
    JOB_NAME="sweep-$SWEEP_NAME"
}

# next_array OFFSET:TASKS: have it submitted next
next_array() {
    local size="${#OFFSET_DIGITS}"
    WORDS=("${1%%:*}")
    ARRAY="${1#*:}${MAX_RUNNING:+%$MAX_RUNNING}"
    LOGS="cell_%a/slurm_%A_%a"
    # the numbers of its cells are those of its tasks behind the same digits; arrays have a power of ten of them
    ((!WORDS[0])) || LOGS="cell_${WORDS[0]%"$OFFSET_DIGITS"}%${size}a/slurm_%A_%a"
}

state() {
    ensure_environment >&2
    cells --state $(! has_slurm || echo --slurm)
}

# submit_job: one array, or several where the cluster's are smaller
submit_job() {
    local each id ids=() SINGLETON=0
    AFTER="$(latest_jobs "$AFTER")" || exit $?
    ensure_environment
    if ((DRY_RUN)); then
        RUN_DIR="$PACKAGE_DIR/run_N"
        plan
    else
        plan --package "$PACKAGE_DIR" $( ((!PIN_CODE)) || echo --pin)
    fi
    if [[ -z $ARRAYS ]]; then
        printf 'nothing to submit\n'
        return
    fi
    if ((!DRY_RUN)); then
        record_run "$RUN_DIR" bash "$JOB_SCRIPT" "${ARGUMENTS[@]}"
        printf 'run folder:   %s\n' "$RUN_DIR"
        ((!PIN_CODE)) || pin_code
        AFTER="$(latest_jobs "$AFTER")" || exit $? # a chain may have gone on in another job while all this was done
    fi
    for each in $ARRAYS; do
        next_array "$each"
        if ((DRY_RUN)); then
            sbatch_words
            segment_words
            printf 'would submit: %s\n' "$(quoted "${SBATCH[@]}")"
            printf 'which runs:   %s\n' "$(quoted "${SEGMENT[@]}")"
            try_sbatch
        elif id="$(hand_to_slurm)"; then
            printf '%s %s\n' "$id" "${each%%:*}" >>"$RUN_DIR/arrays.txt"
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
    printf 'stop:         bash %q %s\n' "$CLONE_DIR/iridis/cancel.sh" "${ids[*]}"
}
