# shellcheck shell=bash
# What every evaluation package shares: which checkpoints, one summary and one text for each in the run folder, and the report.
# A package sources this, names the training in TRAINED_BY, may define `work`, `draw` and `choose_checkpoints`, and calls `run_evaluation "$@"`.
# Each checkpoint has a folder below the run folder, called by its label, where there are several or it has one.

# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PROGRAMS=(eval) # that get the flags after --
OWN_FLAGS=() # that `evaluate` gives eval.py before those
TAKES_WORDS=1 # those of the training that is evaluated
NEEDS_ROUTERS=0 # 1: only adaptive models can be evaluated so

# find_checkpoints: those given by --checkpoint, else the experiment of the training package with the same --name
find_checkpoints() {
    local experiment
    ((!${#WORDS[@]})) || grep -q '^TAKES_WORDS=1' "$REPO_DIR/iridis/$TRAINED_BY/job.sh" ||
        die "unknown word ${WORDS[0]} (bash $JOB_SCRIPT --help lists the options)"
    if ((${#CHECKPOINTS[@]} == 0)); then
        experiment="$(bash "$REPO_DIR/iridis/$TRAINED_BY/job.sh" --where "${WORDS[@]}" ${NAME:+--name "$NAME"})" || exit $?
        CHECKPOINTS=("$experiment") LABELS=("")
    fi
    [[ -d $RUN_DIR ]] || return 0
    local n
    for n in "${!CHECKPOINTS[@]}"; do printf '%s\n' "${LABELS[n]:+${LABELS[n]}=}${CHECKPOINTS[n]}"; done >"$RUN_DIR/checkpoints.txt"
    stage_words >"$RUN_DIR/stage.txt"
}

# find_targets: fill FILES with the checkpoint files that are read, in the order of the checkpoints and then of their steps; for each,
# OF with the number of its checkpoint, AT with its step, and DATA with the place of its data where the recorded one is gone
find_targets() {
    local fields=() n options=(--steps "${STEPS[@]}" --data_dir "$DATA_DIR")
    find_checkpoints
    [[ ! " ${FLAGS[*]}" =~ \ --data(_dir|set)[=\ ] ]] || options=(--steps "${STEPS[@]}") # the user says where
    ((!DRY_RUN)) || options+=(--quick)
    [[ -z $AFTER ]] || ((!DRY_RUN)) || options+=(--later)
    mapfile -d '' -t fields < <(command python -m iridis.targets "${options[@]}" -- "${CHECKPOINTS[@]}")
    wait $! || exit $?
    OF=() AT=() FILES=() DATA=()
    for ((n = 0; n < ${#fields[@]}; n += 4)); do
        OF+=("${fields[n]}") AT+=("${fields[n + 1]}") FILES+=("${fields[n + 2]}") DATA+=("${fields[n + 3]}")
    done
}

# opens I: fill OPENS, the words with which a program opens the I-th file
opens() {
    OPENS=(--checkpoint "${FILES[$1]}")
    [[ -z ${DATA[$1]} ]] || OPENS+=(--data_dir "${DATA[$1]}")
}

# stage_words: what makes an evaluation this one and no other, quoted alike in every locale
stage_words() {
    local LC_ALL=C
    checkpoint_words
    quoted "${CHECKPOINT_WORDS[@]}" "${WORDS[@]}" -- "${FLAGS[@]}"
}

# choose_checkpoints: a package may fill CHECKPOINTS here
choose_checkpoints() { :; }

identify() {
    choose_checkpoints
    find_checkpoints
    name_job "${CHECKPOINTS[*]}"
    if ((${#WORDS[@]} + ${#FLAGS[@]} + ${#STEPS[@]})) || [[ -n ${LABELS[0]} ]]; then
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
# be found. Call it in a subshell: it takes the options of the run for its own.
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
    [[ -z $AFTER ]] || return 0
    local options=(--quick --steps "${STEPS[@]}")
    ((!NEEDS_ROUTERS)) || options+=(--routed)
    [[ " ${FLAGS[*]}" =~ \ --data(_dir|set)[=\ ] ]] || options+=(--need_data --data_dir "$DATA_DIR")
    python -m iridis.targets "${options[@]}" -- "${CHECKPOINTS[@]}" >/dev/null || exit $?
}

# evaluate FOLDER CHECKPOINT FLAGS...: perplexity over the validation split; what is printed is kept as TEXT, by default eval.txt
evaluate() {
    mkdir -p "$1"
    printf '=== %s\n' "$2"
    python eval.py --checkpoint "$2" --output_dir "$1" "${@:3}" "${OWN_FLAGS[@]}" "${FLAGS[@]}" | tee "$1/${TEXT:-eval.txt}"
}

# evaluate_all: each file at full compute, with the step in the names of its results
evaluate_all() {
    local i folder TEXT
    find_targets
    for i in "${!FILES[@]}"; do
        opens "$i"
        folder="$RUN_DIR$(part "${OF[i]}")" TEXT="eval${AT[i]:+_$(thousands "${AT[i]}")}.txt"
        evaluate "$folder" "${FILES[i]}" "${OPENS[@]:2}"
        name_by_step "$i" "$folder" "$TEXT"
    done
}

# thousands STEP: 40000 as 40k
thousands() {
    if (($1 % 1000)); then printf '%s' "$1"; else printf '%sk' "$(($1 / 1000))"; fi
}

# name_by_step I FOLDER TEXT: the results of the I-th file, as eval.py and `evaluate` wrote them; names without a step become links
name_by_step() {
    local plain="$2/eval_summary_ckpt" numbered="eval_summary_ckpt_${AT[$1]}" kind
    [[ $3 == eval.txt || ! -f "$2/$3" ]] || ln -sfn -- "$3" "$2/eval.txt"
    [[ ${FILES[$1]} == */ckpt.pt && -n ${AT[$1]} ]] || return 0
    for kind in npz json; do
        [[ -f $plain.$kind && ! -L $plain.$kind ]] || continue
        mv -f -- "$plain.$kind" "$2/$numbered.$kind"
        ln -sfn -- "$numbered.$kind" "$plain.$kind"
    done
}

# part N: where the N-th checkpoint has its results, below a folder: by its label, else by its number where there are several
part() {
    if [[ -n ${LABELS[$1]:-} ]]; then
        printf '/%s' "${LABELS[$1]}"
    elif ((${#CHECKPOINTS[@]} > 1)); then
        printf '/%s' "$1"
    fi
}

# place I: where the I-th file has results whose names do not have the step, below a folder
place() {
    printf '%s%s' "$(part "${OF[$1]}")" "${AT[$1]:+/ckpt_${AT[$1]}}"
}

# found NAME FOLDER N...: fill FOUND with the files of that name that those checkpoints have below a folder, each behind its label; none,
# or some of each checkpoint
found() {
    local n file files without=""
    FOUND=()
    for n in "${@:3}"; do
        mapfile -t files < <(find "$2$(part "$n")" -name "$1" 2>/dev/null | sort -V)
        ((${#files[@]})) || without="${LABELS[n]:-${CHECKPOINTS[n]}}"
        for file in "${files[@]}"; do FOUND+=("${LABELS[n]:+${LABELS[n]}=}$file"); done
    done
    [[ -z $without ]] || ((!${#FOUND[@]})) || die "no $1 of $without is left below $2: evaluate again"
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
    local run checkpoint
    ensure_environment
    RUN_DIR=""
    for run in "$PACKAGE_DIR"/run_*; do
        [[ -e "$run/done" && (-z $RUN_DIR || "$run/done" -nt "$RUN_DIR/done") ]] && RUN_DIR="$run"
    done
    [[ -n $RUN_DIR ]] || die "no run of $(basename "$PACKAGE_DIR") is complete; bash $JOB_SCRIPT makes one"
    CHECKPOINTS=() LABELS=()
    while IFS= read -r checkpoint; do add_checkpoint "$checkpoint"; done <"$RUN_DIR/checkpoints.txt"
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
