# shellcheck shell=bash
# shellcheck disable=SC2034  # DECIDED is read by a trap
# What every training package shares: the paper's setting, and a chain of jobs that goes on until the training is done.
# A package sources this, sets its configuration and MODEL_FLAGS, and calls `run_training "$@"`. One that trains another recipe
# than the paper's defines `setting` anew.

# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SINGLETON=1 CHAINS=1
KIND=""           # of a package: what stands for the model in the names of its jobs
CHAINED=0         # 1: this is a job of a chain
DECIDED=0         # 1: this job has said what becomes of its chain
SIGNALLED=""      # why this job was asked to stop
CHILD=""          # the process that this shell waits for
ALARM=""          # the process that wakes this shell when the training has had its time
OVERDUE=0         # 1: the training did not end in the time that the signal left, and was killed
HAND_OVER=30      # seconds that the end of a job keeps for handing over, at most
RETRY=10          # seconds between the first tries to submit the next job; each pause is longer, up to a minute
KEEP_TRYING=3600  # seconds after which a job with time left gives that up

# setting: begin TRAIN_FLAGS, the flags of main.py, with the paper's setting; and FORMERLY with what the first of them were when
# older experiments began. SEED and EVAL_FREQ can be set in the environment. A package may define it anew.
setting() {
    : "${ITERATIONS:=40000}" "${BATCH_SIZE:=8}" "${ACC_STEPS:=16}" "${CKPT_FREQ:=2000}" "${DATASET:=owt2}"
    [[ -n ${SEED:-} ]] || TRAIN_FLAGS+=(--seed 0) FORMERLY+=(--seed 2)
    [[ -n ${EVAL_FREQ:-} ]] || TRAIN_FLAGS+=(--eval_freq 100) FORMERLY+=(--eval_freq 200)
    # defaults that were others once come first: `preflight` replaces as many words
    TRAIN_FLAGS+=(${SEED:+--seed "$SEED"} ${EVAL_FREQ:+--eval_freq "$EVAL_FREQ"}
        --dataset "$DATASET" --data_dir "$DATA_DIR" --results_base_folder "$RESULTS_DIR" --data_in_ram
        --n_embd 768 --n_head 12 --sequence_length 256 --lr 1e-3 --warmup_percent 0.2
        --batch_size "$BATCH_SIZE" --acc_steps "$ACC_STEPS" --iterations "$ITERATIONS" --save_checkpoint_freq "$CKPT_FREQ")
}

# recipe_flags WORDS...: the setting of a package of another recipe: these words, the places, and what the environment sets
recipe_flags() {
    TRAIN_FLAGS=("$@" --data_dir "$DATA_DIR" --results_base_folder "$RESULTS_DIR"
        ${ITERATIONS:+--iterations "$ITERATIONS"} ${SEED:+--seed "$SEED"} ${EVAL_FREQ:+--eval_freq "$EVAL_FREQ"})
}

# fill_flags: fill TRAIN_FLAGS and FORMERLY: the setting, the package's model, then what the user gave
fill_flags() {
    : "${WANDB:=1}" "${WANDB_PROJECT:=rcotformer}"
    local steps
    TRAIN_FLAGS=() FORMERLY=()
    setting
    read -ra steps <<<"${KEEP_STEPS:-}"
    ((!${#steps[@]})) || TRAIN_FLAGS+=(--keep_steps "${steps[@]}")
    [[ $WANDB == 0 ]] || TRAIN_FLAGS+=(--wandb --wandb_project "$WANDB_PROJECT")
    TRAIN_FLAGS+=("${MODEL_FLAGS[@]}")
    [[ -z $NAME ]] || TRAIN_FLAGS+=(--exp_name "$NAME")
    TRAIN_FLAGS+=("${FLAGS[@]}")
}

# preflight OPTIONS...: run iridis.preflight; sets EXPERIMENT, STATE, LEAD, HOLDER, DEVICE and MODEL, and gives an experiment the flags that it began with
preflight() {
    local answer FORMER=0
    [[ $HOW != segment ]] || set -- "$@" --experiment "$EXPERIMENT"
    answer="$(python -m iridis.preflight "$@" --time "$TIME_LIMIT" --processes "$((PROCESSES * N_NODES))" --formerly="${FORMERLY[*]}" \
        -- "${TRAIN_FLAGS[@]}")" || exit $?
    read_values EXPERIMENT STATE LEAD HOLDER DEVICE MODEL FORMER <<<"$answer"
    ((!FORMER)) || TRAIN_FLAGS=("${FORMERLY[@]}" "${TRAIN_FLAGS[@]:${#FORMERLY[@]}}")
    NAME_PREFIX="train-${KIND:-$MODEL}" # whichever package: two of them may work on one experiment
    name_job "$EXPERIMENT"
}

identify() { preflight --where; }
is_done() { [[ $STATE == finished ]]; }

# where: print the experiment's folder
where() {
    ensure_environment >&2
    identify
    printf '%s\n' "$EXPERIMENT"
}

before_local() { preflight; }
commands() { quoted python main.py "${TRAIN_FLAGS[@]}"; }

before_submit() {
    ensure_environment
    preflight --partition "$PARTITION" --nodes "$N_NODES" --gpus "$N_GPUS" ${AFTER:+--no-data}
    printf 'experiment:   %s\n' "$EXPERIMENT"
}

# with_run_dir: leave the experiment's folder for people, and refuse a second training of it
with_run_dir() {
    printf '%s\n' "$EXPERIMENT" >"$RUN_DIR/experiment.txt"
    local queued
    queued="$(queued_job)"
    if [[ $STATE == finished ]]; then
        printf 'finished already: nothing to do; %s\n' "$EXPERIMENT/summary.json" | tee "$RUN_DIR/not_submitted.txt"
        exit 0
    elif [[ -n $queued ]]; then
        refuse "$EXPERIMENT is in the queue already: job $queued; wait for it, or scancel it"
    elif [[ -n $HOLDER ]]; then
        refuse "$EXPERIMENT is being trained by $HOLDER"
    fi
}

# refuse MESSAGE: say why nothing is submitted, and leave it in the run folder
refuse() {
    printf '%s\n' "$1" >"$RUN_DIR/not_submitted.txt"
    die "$1"
}

# ask_to_stop REASON: for traps; the training finishes its step and saves, or is killed shortly before SLURM would end the job
ask_to_stop() {
    SIGNALLED="$1" WOKEN=1
    # the run folder may be gone by now; main.py also knows signals and the job's end
    if ! { mkdir -p "$RUN_DIR" && printf '%s\n' "$1" >"$STOP_FILE.tmp" && mv "$STOP_FILE.tmp" "$STOP_FILE"; }; then
        signal_training USR1
    fi
    [[ $HOW != segment ]] || set_alarm "$1"
}

# set_alarm REASON: have `overdue` called when the time for a step and a save is nearly over
set_alarm() {
    local seconds
    if [[ $1 == SIGTERM ]]; then # SLURM kills everything after KillWait, this shell too
        seconds="$(scontrol show config 2>/dev/null | sed -nE 's/^KillWait *= *([0-9]+).*/\1/p' || true)"
        seconds=$((${seconds:-30} / 2))
    else
        seconds=$((LEAD < 3 * HAND_OVER ? LEAD / 3 : HAND_OVER)) # kept for handing over
        seconds=$((SLURM_JOB_END_TIME - $(date +%s) - seconds))
    fi
    [[ -z $ALARM ]] || kill "$ALARM" 2>/dev/null || true
    (trap - EXIT USR1 TERM && sleep "$((seconds > 0 ? seconds : 0))" && kill -USR2 $$) &
    ALARM=$!
}

# overdue: for the trap of the alarm: the training has not ended in time. A preempted job is requeued without our doing.
overdue() {
    WOKEN=1
    local cause="$SIGNALLED"
    [[ $cause != SIGTERM ]] || cause="$(why_terminated)"
    if [[ $cause == "time limit" || $cause == cancelled ]] && [[ -n $CHILD ]]; then
        OVERDUE=1
        printf '=== the training has not ended since it was asked to (%s), and is killed\n' "$cause"
        signal_training KILL
    fi
}

# signal_training SIGNAL: to all processes of what runs now, on all nodes
signal_training() {
    local step
    [[ -n $CHILD ]] || return 0
    # shellcheck disable=SC2046  # a list of ids
    kill "-$1" $(descendants "$CHILD") 2>/dev/null || true
    ((N_NODES == 1)) || for step in $(squeue -h -s -j "$THIS_JOB" -o %i | grep -E '\.[0-9]+$'); do
        scancel --signal="$1" "$step" || true
    done
}

# descendants PID: it, and all processes below it; some are in sessions of their own
descendants() {
    local child
    printf '%s\n' "$1"
    for child in $(pgrep -P "$1" || true); do descendants "$child"; done
}

# why_terminated: what SLURM means by a SIGTERM, as it describes the job meanwhile
why_terminated() {
    local JobState="" Restarts="" PreemptTime="" RunTime="" TimeLimit=""
    read_values JobState Restarts PreemptTime RunTime TimeLimit < <(scontrol show job -o "$THIS_JOB" | tr ' ' '\n')
    if ((${Restarts:-0} > ${SLURM_RESTART_COUNT:-0})); then
        printf 'requeued\n' # by SLURM: after a preemption, or because it had lost the node
    elif [[ $JobState == RUNNING && -n $PreemptTime && $PreemptTime != None ]]; then
        printf 'preempted\n' # and given time to end
    elif [[ $JobState != COMPLETING && $JobState != CANCELLED && $JobState != TIMEOUT ]]; then
        printf 'SIGTERM\n' # SLURM did not send it, or does not answer
    elif [[ $JobState == TIMEOUT || ! $(clock "$RunTime") < $(clock "$TimeLimit") ]]; then
        printf 'time limit\n'
    else
        printf 'cancelled\n'
    fi
}

# clock TIME: one of SLURM's, with leading zeros, so that two can be compared as texts
clock() {
    local days=0 rest="$1"
    [[ $1 != *-* ]] || { days="${1%%-*}" rest="${1#*-}"; }
    printf '%05d-%s\n' "$days" "$rest"
}

# fit_to_train: whether all nodes pass the health check. A node that does not is left out of the next job.
fit_to_train() {
    local report="$RUN_DIR/health_$THIS_JOB.${SLURM_RESTART_COUNT:-0}" node sick=()
    : >"$report"
    run_and_wait launch -m distributed.health --report "$report" --gpus "$N_GPUS" --device "$DEVICE" || true
    [[ -z $SIGNALLED ]] || return 0
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        (($({ grep -cxF "$node" "$report" || true; }) >= PROCESSES)) || sick+=("$node")
    done
    if ((${#sick[@]} == 0)); then
        rm -f "$RUN_DIR/was_sick"
        return 0
    fi
    printf '%s\n' "${sick[@]}" >>"$RUN_DIR/excluded_nodes"
    SICK="${sick[*]}"
    return 1
}

# continue_chain REASON: another job takes this one's place
continue_chain() {
    mkdir -p "$RUN_DIR" || true # where it is gone, the next job could write no log, and end at once
    { [[ -e "$RUN_DIR/experiment.txt" ]] || printf '%s\n' "$EXPERIMENT" >"$RUN_DIR/experiment.txt"; } || true
    printf '%s\n' "$1" >>"$RUN_DIR/jobs_of_chain.txt" || true # SLURM's own restarts are none
    if [[ -n $MAX_JOBS && $(wc -l <"$RUN_DIR/jobs_of_chain.txt") -ge $MAX_JOBS ]]; then
        end_chain "the limit of --chain $MAX_JOBS jobs is reached ($1)"
    fi
    printf '=== %s: going on in another job\n' "$1"
    AFTER=""
    shorten_limit
    # a requeued job keeps its time limit and the nodes that it may run on; another limit, or leaving a sick node out, takes a new job
    [[ $CHAIN_BY != requeue || -n ${SICK:-}${SHORTENED:-} ]] || requeue || true
    trap 'SIGNALLED=SIGTERM' TERM
    local try=0 id began=$SECONDS
    while :; do
        if id="$(hand_to_slurm)"; then
            hand_over_to "$id"
        fi
        try=$((try + 1))
        ((try < 2)) || [[ -n ${SICK:-}${SHORTENED:-} ]] || requeue || true # where users may have one submitted job, this is the only way
        pause "$((try * RETRY < 60 ? try * RETRY : 60))"
        if [[ $SIGNALLED == SIGTERM ]]; then
            case "$(why_terminated)" in
            requeued) gives_way_to_its_restart ;;
            "time limit" | cancelled) end_chain "$1, and sbatch refused the next job until the job's own end" ;;
            esac
        fi
        if (($(date +%s) > SLURM_JOB_END_TIME || SECONDS - began > KEEP_TRYING)); then
            end_chain "$1, and sbatch refused the next job $try times"
        fi
    done
}

# requeue: have SLURM start this very job again; fails where it will not. SLURM sends SIGTERM to a job that it requeues.
requeue() {
    trap '' TERM
    if scontrol requeue "$THIS_JOB"; then
        DECIDED=1
        exit 0
    fi
    trap 'SIGNALLED=SIGTERM' TERM # asked about between two tries
    return 1
}

# hand_over_to ID: that job goes on, unless SLURM has requeued this one meanwhile, or a person has cancelled it
hand_over_to() {
    take_back_if_ended "$1"
    { mkdir -p "$LINKS_DIR" && printf '%s\n' "$1" >"$LINKS_DIR/$THIS_JOB" && exec 8>>"$LINKS_DIR/lock"; } || true
    # tasks of an array that end together would overwrite what each adds to the same dependency
    flock -w 60 8 2>/dev/null || true
    hand_on "$THIS_JOB" "$1"
    exec 8>&-
    take_back_if_ended "$1" # that took a while
    DECIDED=1
    printf '=== job %s goes on\n' "$1"
    exit 0
}

# take_back_if_ended ID: that job is not wanted where SLURM has requeued this one meanwhile, or a person has cancelled it
take_back_if_ended() {
    local cause=""
    [[ $SIGNALLED != SIGTERM ]] || cause="$(why_terminated)"
    if [[ $cause == requeued || $cause == cancelled ]]; then
        scancel "$1" || true
        rm -f "$LINKS_DIR/$THIS_JOB"
        [[ $cause == cancelled ]] || gives_way_to_its_restart
        end_chain cancelled
    fi
}

# gives_way_to_its_restart: SLURM starts this very job again, so there is nothing to submit
gives_way_to_its_restart() {
    printf '=== SLURM starts this job again\n'
    DECIDED=1
    exit 0
}

# pause SECONDS: a signal ends it
pause() {
    sleep "$1" &
    wait $! || true
}

# shorten_limit: a partition's limit may have been lowered since; a job that asks for more would wait for ever
shorten_limit() {
    local ALLOWED="" ALLOWED_SECONDS="" answer
    answer="$(python -m iridis.preflight --partition "$PARTITION" --time "$TIME_LIMIT" --allowed 2>/dev/null)" || return 0
    read_values ALLOWED ALLOWED_SECONDS <<<"$answer"
    [[ -n $ALLOWED ]] || return 0
    printf 'warning: partition %s allows %s by now; the next job gets that instead of %s\n' "$PARTITION" "$ALLOWED" "$TIME_LIMIT" >&2
    TIME_LIMIT="$ALLOWED" SHORTENED=1
    LEAD=$((LEAD < ALLOWED_SECONDS / 4 ? LEAD : ALLOWED_SECONDS / 4))
}

# hand_on OLD NEW: jobs that wait for OLD wait for NEW instead; those that wait for the array of OLD, for NEW too. An array that
# waits is told as a whole.
hand_on() {
    local id dependency changed edit="s/:$1(:|,|\$)/:$2\\1/"
    [[ $1 != *_* ]] || edit+=";s/:(${1%_*})(_\*)?(:|,|\$)/:\\1:$2\\3/"
    while IFS='|' read -r id dependency; do
        dependency="$(sed -E 's/\([a-z]*\)//g' <<<"$dependency")"
        changed="$(sed -E "$edit" <<<"$dependency")"
        [[ $changed != "$dependency" ]] || continue
        if ! scontrol update JobId="$id" Dependency="$changed"; then
            printf 'error: job %s waited for this one and could not be made to wait for job %s; cancelled\n' "$id" "$2" >&2
            scancel "$id"
        fi
    done < <(squeue -h --me --states=PENDING -o '%F|%E' ||
        printf 'warning: squeue does not say which jobs wait for this one; they do not wait for the next\n' >&2)
}

# end_chain REASON: no further job; what waits for this one is cancelled by SLURM
end_chain() {
    DECIDED=1 REPORTED=1
    printf 'error: the chain stops: %s\n' "$1" >&2
    local id
    for id in $(squeue -h --me --name="$JOB_NAME" --states=PENDING -o %i || true); do
        [[ $id == "$THIS_JOB" ]] || scancel "$id" || true # this very job may have been requeued, which is SLURM's affair
    done
    python -m iridis.chain "$EXPERIMENT" --ended "$1" || true
    notify "$JOB_NAME: stopped" "$1"$'\n'"experiment: $EXPERIMENT"$'\n'"logs: $RUN_DIR"
    exit 1
}

# segment_begins: from here on signals are kept, and no way out of the job leaves the chain's end untold
segment_begins() {
    local start="$THIS_JOB.${SLURM_RESTART_COUNT:-0}"
    STOP_FILE="$RUN_DIR/stop_$start" OUTCOME_FILE="$RUN_DIR/outcome_$start.json"
    EXPERIMENT="$(<"$RUN_DIR/experiment.txt")"
    trap 'ask_to_stop "time limit"' USR1
    trap 'ask_to_stop SIGTERM' TERM
    trap overdue USR2
    CHAINED=1
}

leaving() {
    ((CHAINED && !DECIDED)) || return 0
    if [[ $SIGNALLED == SIGTERM && $(why_terminated) == requeued ]]; then gives_way_to_its_restart; fi
    end_chain "the job failed outside its training, see above"
}

# train_segment: one job of a chain
train_segment() {
    local code=0 cause="" answer VERDICT REASON
    preflight --where
    # from here on, a task of an array is found by its experiment as any other job
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || scontrol update JobId="$THIS_JOB" JobName="$JOB_NAME" || true
    if [[ $STATE == unfinished && $HEALTH_CHECK != 0 ]] && ! fit_to_train; then
        [[ ! -e "$RUN_DIR/was_sick" ]] || end_chain "the health check failed again, on $SICK"
        : >"$RUN_DIR/was_sick"
        continue_chain "the health check failed on $SICK"
    fi
    if [[ -z $SIGNALLED ]]; then
        run_and_wait launch main.py "${TRAIN_FLAGS[@]}" --stop_file "$STOP_FILE" --outcome_file "$OUTCOME_FILE" || code=$?
    fi
    [[ -z $ALARM ]] || kill "$ALARM" 2>/dev/null || true
    rm -f "$STOP_FILE"
    cause="$SIGNALLED"
    [[ $cause != SIGTERM ]] || cause="$(why_terminated)"
    ((!OVERDUE)) || [[ $cause != "time limit" ]] || cause="time limit within a step or save"
    answer="$(python -m iridis.chain "$EXPERIMENT" --code "$code" --cause "$cause" --outcome "$OUTCOME_FILE" --memory "$MEMORY")"
    read_values VERDICT REASON <<<"$answer"
    printf '=== training ended with code %s%s; %s: %s\n' "$code" "${cause:+ ($cause)}" "$VERDICT" "$REASON"
    if [[ $cause == requeued ]]; then # SLURM starts this very job again
        [[ $VERDICT != stop ]] || scancel "$THIS_JOB"
        DECIDED=1
        exit 0
    fi
    case "$VERDICT" in
    finished)
        DECIDED=1
        notify "$JOB_NAME: finished" "experiment: $EXPERIMENT"
        exit 0
        ;;
    replaced) # what waits for this job must not take the training for finished
        DECIDED=1 REPORTED=1
        exit 1
        ;;
    again) continue_chain "$REASON" ;;
    *) end_chain "$REASON" ;;
    esac
}

# keep NAME: copy stdin into a file of the run folder and on. A Ctrl-C reaches this too, and the training has yet to speak.
keep() (
    trap '' INT TERM HUP
    exec tee -a "$RUN_DIR/$1"
)

# train_here: in the foreground; Ctrl-C finishes the step and saves
train_here() {
    local code=0
    STOP_FILE="$RUN_DIR/stop" OUTCOME_FILE="$RUN_DIR/outcome.json"
    trap 'ask_to_stop interrupted' INT TERM HUP
    printf '%s\n' "$EXPERIMENT" >"$RUN_DIR/experiment.txt"
    run_and_wait launch main.py "${TRAIN_FLAGS[@]}" --stop_file "$STOP_FILE" --outcome_file "$OUTCOME_FILE" \
        > >(keep train.out) 2> >(keep train.err >&2) || code=$?
    rm -f "$STOP_FILE"
    ((code)) || code="$(outcome_code "$OUTCOME_FILE")" # torchrun ends a clean stop with 0
    REPORTED=1
    exit "$code"
}

# outcome_code FILE: the exit code that a training has written down, 0 where it has not
outcome_code() {
    python -c 'import sys; from pathlib import Path; from optim.outcome import read_outcome; outcome = read_outcome(Path(sys.argv[1]))
print(outcome.code if outcome else 0)' "$1"
}

work() {
    if [[ $HOW == segment ]]; then train_segment; else train_here; fi
}

# run_training ARGUMENTS...: the whole of a training package's job
run_training() {
    : "${N_GPUS:=2}" "${TIME_LIMIT:=1-00:00:00}" "${MEMORY:=128G}"
    fill_flags
    run_job "$@"
}
