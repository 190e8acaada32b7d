# shellcheck shell=bash
# shellcheck disable=SC2034  # lib.sh reads what this sets
# What the packages of genomes share: a program that goes on where it was, in a job that SLURM starts again when its time is up.
# A package sources this, fills COMMAND, defines `work_on` and calls `run_data_job "$@"`.

REQUIREMENTS="requirements-genomes.txt"
# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TAKES_WORDS=1
SINGLETON=1
CHILD=""       # the process that this shell waits for
TIME_IS_UP=0
SBATCH_OPTIONS="--signal=B:USR1@$LEAD $SBATCH_OPTIONS"

# ask_to_end: for the trap of the signal that comes before the time limit
ask_to_end() {
    TIME_IS_UP=1 WOKEN=1
    [[ -z $CHILD ]] || kill -TERM "$CHILD" 2>/dev/null || true
}

# work: what is done stays done, so this may be ended at any time
work() {
    local code=0
    if [[ $HOW != segment ]]; then
        exec > >(tee "$RUN_DIR/program.out") 2>&1
        exec "${COMMAND[@]}"
    fi
    trap ask_to_end USR1
    run_and_wait "${COMMAND[@]}" || code=$?
    if ((TIME_IS_UP && code)); then
        printf '=== the time is up: SLURM starts this job again, and it goes on\n'
        scontrol requeue "$THIS_JOB" || die "the time is up, and SLURM does not start this job again: submit it again, it goes on where it was"
        sleep 60 # SLURM ends it meanwhile
    fi
    REPORTED=1
    ((!code)) || exit "$code"
}

commands() { quoted "${COMMAND[@]}"; }

# is_done: whether the program finds nothing to do
is_done() {
    local answer
    answer="$("${COMMAND[@]}" --state)" || exit $?
    [[ $answer == "done" ]]
}
