# shellcheck shell=bash
# What every evaluation package shares: which checkpoints, one summary and one text for each in the run folder, and the report.
# A package sources this, names the training in TRAINED_BY, may define `work` and `draw`, and calls `run_evaluation "$@"`.

# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# find_checkpoints: those given by --checkpoint, else the experiment of the training package with the same --name
find_checkpoints() {
    local experiment
    if ((${#CHECKPOINTS[@]} == 0)); then
        experiment="$(bash "$REPO_DIR/iridis/$TRAINED_BY/job.sh" --where "${WORDS[@]}" ${NAME:+--name "$NAME"})" || exit $?
        CHECKPOINTS=("$experiment")
    fi
    [[ -z $RUN_DIR ]] || printf '%s\n' "${CHECKPOINTS[@]}" >"$RUN_DIR/checkpoints.txt"
}

identify() {
    find_checkpoints
    name_job "${CHECKPOINTS[*]}"
}

# is_done: whether a run evaluated the (first) checkpoint to its end, and the checkpoint is not newer
is_done() {
    local newest="${CHECKPOINTS[0]}" run
    [[ ! -d $newest ]] || newest="$newest/summary.json"
    [[ -e $newest ]] || return 1
    for run in "$PACKAGE_DIR"/run_*; do
        if [[ "$run/done" -nt $newest ]] && grep -qxF -- "${CHECKPOINTS[0]}" "$run/checkpoints.txt" 2>/dev/null; then
            return 0
        fi
    done
    return 1
}

before_submit() {
    ensure_environment
    identify
    local checkpoint
    for checkpoint in "${CHECKPOINTS[@]}"; do
        [[ -n $AFTER || -e $checkpoint ]] || die "there is no checkpoint $checkpoint; train it (iridis/$TRAINED_BY/job.sh), or name one: --checkpoint DIR_OR_FILE"
    done
    python -m iridis.preflight --partition "$PARTITION" --time "$TIME_LIMIT" --nodes "$N_NODES" --gpus "$N_GPUS" >/dev/null
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
