# shellcheck shell=bash
# What every evaluation package shares: which checkpoints, one summary and one text for each in the run folder, and the report.
# A package sources this, names the training in TRAINED_BY, may define `work`, `draw` and `choose_checkpoints`, and calls `run_evaluation "$@"`.

# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PROGRAMS=(eval) # that get the flags after --
TAKES_WORDS=1 # those of the training that is evaluated

# find_checkpoints: those given by --checkpoint, else the experiment of the training package with the same --name
find_checkpoints() {
    local experiment
    ((!${#WORDS[@]})) || grep -q '^TAKES_WORDS=1' "$REPO_DIR/iridis/$TRAINED_BY/job.sh" ||
        die "unknown word ${WORDS[0]} (bash $JOB_SCRIPT --help lists the options)"
    if ((${#CHECKPOINTS[@]} == 0)); then
        experiment="$(bash "$REPO_DIR/iridis/$TRAINED_BY/job.sh" --where "${WORDS[@]}" ${NAME:+--name "$NAME"})" || exit $?
        CHECKPOINTS=("$experiment")
    fi
    [[ -d $RUN_DIR ]] || return 0
    printf '%s\n' "${CHECKPOINTS[@]}" >"$RUN_DIR/checkpoints.txt"
    stage_words >"$RUN_DIR/stage.txt"
}

# stage_words: what makes an evaluation this one and no other, quoted alike in every locale
stage_words() {
    local LC_ALL=C checkpoint words=()
    for checkpoint in "${CHECKPOINTS[@]}"; do words+=(--checkpoint "$checkpoint"); done
    quoted "${words[@]}" "${WORDS[@]}" -- "${FLAGS[@]}"
}

# choose_checkpoints: a package may fill CHECKPOINTS here
choose_checkpoints() { :; }

identify() {
    choose_checkpoints
    find_checkpoints
    name_job "${CHECKPOINTS[*]}"
    if ((${#WORDS[@]} + ${#FLAGS[@]})); then
        JOB_NAME+="-$(stage_words | sha256sum | cut -c1-8)"
    fi
}

# written_at FILE: in nanoseconds since 1970; fails where there is no such file
written_at() {
    local seconds
    seconds="$(LC_ALL=C stat -c %.9Y -- "$1" 2>/dev/null)" && printf '%s\n' "${seconds/./}"
}

# finished_at CHECKPOINT: when an experiment's training finished, or a file was written; fails where neither is so
finished_at() {
    local FINISHED_AT=""
    if [[ -d $1 ]]; then
        read_values FINISHED_AT < <(python -m optim.reader "$1")
        [[ -n $FINISHED_AT ]] && printf '%s\n' "$FINISHED_AT"
    else
        written_at "$1"
    fi
}

# recorded_stage RUN: the stage words of a run; of one that is older than stage.txt, from its command. Fails where they cannot
# be told. Call it in a subshell: it takes the options of the run for its own.
recorded_stage() {
    if [[ -e "$1/stage.txt" ]]; then
        cat "$1/stage.txt"
        return
    fi
    local command words
    command="$(cat "$1/command.txt")" || return
    [[ $command != *"''"* && $command != *"\$'"* ]] || return # quotes that `read` leaves as they are
    # shellcheck disable=SC2162  # without -r, read undoes the backslashes that `quoted` made, and runs nothing
    read -a words <<<"$command" || return
    parse_options "${words[@]:2}"
    mapfile -t CHECKPOINTS <"$1/checkpoints.txt" || return
    stage_words
}

# is_done: whether a run did this very evaluation to its end, after the newest of its checkpoints
is_done() {
    local checkpoint finished newest=0 run ended wanted
    for checkpoint in "${CHECKPOINTS[@]}"; do
        finished="$(finished_at "$checkpoint")" || return 1
        ((finished <= newest)) || newest="$finished"
    done
    wanted="$(stage_words)"
    for run in "$PACKAGE_DIR"/run_*; do
        if ended="$(written_at "$run/done")" && ((ended > newest)) && [[ "$(recorded_stage "$run" 2>/dev/null)" == "$wanted" ]]; then
            return 0
        fi
    done
    return 1
}

commands() { commands_of_work; }

before_local() {
    identify
    ((!${#FLAGS[@]})) || python -m iridis.check_flags "${PROGRAMS[@]}" -- "${FLAGS[@]}" >/dev/null || exit $?
    local checkpoint
    for checkpoint in "${CHECKPOINTS[@]}"; do
        [[ -n $AFTER || -e $checkpoint ]] || die "there is no checkpoint $checkpoint; train it (iridis/$TRAINED_BY/job.sh), or name one: --checkpoint DIR_OR_FILE"
    done
}

# evaluate FOLDER CHECKPOINT FLAGS...: perplexity over the validation split
evaluate() {
    mkdir -p "$1"
    printf '=== %s\n' "$2"
    python eval.py --checkpoint "$2" --output_dir "$1" "${@:3}" "${FLAGS[@]}" | tee "$1/eval.txt"
}

# evaluate_all: each checkpoint (the newest one of a folder) at full compute; several get a folder each
evaluate_all() {
    local n
    find_checkpoints
    for n in "${!CHECKPOINTS[@]}"; do
        evaluate "$RUN_DIR$(part "$n")" "${CHECKPOINTS[n]}"
    done
}

# part N: where the N-th of several checkpoints has its results, below a folder
part() {
    ((${#CHECKPOINTS[@]} == 1)) || printf '/%s' "$1"
}

# draw: everything that is made of the data in RUN_DIR and WORKSPACE; a package adds its figures
draw() {
    python -m report "$RUN_DIR" --output "$RUN_DIR"
}

work() {
    evaluate_all
    draw
}

# replot: draw again from the data of the newest complete run, here and now
replot() {
    local run
    ensure_environment
    RUN_DIR=""
    for run in "$PACKAGE_DIR"/run_*; do
        [[ -e "$run/done" && (-z $RUN_DIR || "$run/done" -nt "$RUN_DIR/done") ]] && RUN_DIR="$run"
    done
    [[ -n $RUN_DIR ]] || die "no run of $(basename "$PACKAGE_DIR") is complete; bash $JOB_SCRIPT makes one"
    set_workspace
    draw
}

# set_workspace: the run's folder for large files, on the scratch
set_workspace() {
    WORKSPACE="$SCRATCH_DIR/analysis_workspace/$(basename "$PACKAGE_DIR")/$(basename "$RUN_DIR")"
    mkdir -p "$WORKSPACE"
}

# run_evaluation ARGUMENTS...: the whole of an evaluation package's job
run_evaluation() {
    : "${N_GPUS:=1}" "${TIME_LIMIT:=4:00:00}" "${MEMORY:=64G}"
    run_job "$@"
}
