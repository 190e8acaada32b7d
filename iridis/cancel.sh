#!/usr/bin/env bash
# Cancels an experiment: the job that trains it, which saves first, the next jobs of its chain, and what waits for them.
#   bash iridis/cancel.sh EXPERIMENT        # its folder, or a name that only one experiment in the queue has
#   bash iridis/cancel.sh PACKAGE           # all jobs of a package, such as sweep
#   bash iridis/cancel.sh JOB               # an id, of one job or of a sweep's array, or a job's name
#   bash iridis/cancel.sh all               # all jobs that were submitted from this clone
#   bash iridis/cancel.sh --dry-run ...     # only say which
# Submit an experiment again, and it goes on from its newest checkpoint.
LIBRARY="$(dirname "$(readlink -f "$0")")/lib.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/cancel.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"
parse_options "$@"
[[ $HOW == submit && $PIN_CODE == 0 && -z "$MAX_JOBS$AFTER$NAME${CHECKPOINTS[*]}${STEPS[*]}${FLAGS[*]}" ]] || die "this takes --dry-run alone"
((${#WORDS[@]} == 1)) || die "say what to cancel: bash iridis/cancel.sh EXPERIMENT|PACKAGE|JOB|all"
has_slurm || die "there is no SLURM here, so no job to cancel"

# sweeps: fill ARRAYS with "OFFSET RUN_DIR" of each array of a sweep
sweeps() {
    local array offset file run
    declare -gA ARRAYS=()
    for file in "$REPO_DIR"/iridis/sweep/run_*/arrays.txt; do
        run="$(dirname "$file")"
        [[ ! -s $file ]] || while read -r array offset; do ARRAYS[$array]="$offset $run"; done <"$file"
    done
}

# our_jobs: a line "ID<tab>NAME<tab>RUN_DIR<tab>DEPENDENCY" for each job of this user that was submitted from this clone
our_jobs() {
    local id name out dependency listed array
    listed="$(squeue -h --me -r -o '%i|%j|%E')" || die "squeue does not answer; try again"
    while IFS='|' read -r id name dependency; do
        [[ -n $id ]] || continue
        array="${ARRAYS[${id%%_*}]:-}"
        if [[ $id == *_* && -n $array ]]; then
            printf '%s\t%s\t%s\t%s\n' "$id" "$name" "${array#* }/cell_$((${array%% *} + ${id#*_}))" "$dependency"
            continue
        fi
        out="$(scontrol show job "$id" 2>/dev/null | sed -n 's/^ *StdOut=//p')" || continue # it has just ended
        out="${out//%%/%}" # as given to sbatch, which takes a single one for a pattern
        [[ $out != "$REPO_DIR/iridis/"*/run_*/*slurm_* ]] || printf '%s\t%s\t%s\t%s\n' "$id" "$name" "$(dirname "$out")" "$dependency"
    done <<<"$listed"
}

# works_on RUN_DIR: whether what is to be cancelled is this run's
works_on() {
    local experiment="" package
    package="${1#"$REPO_DIR/iridis/"}" package="${package%%/*}"
    [[ $WANTED != all && $WANTED != "$package" && -z ${MEANT[${1%/cell_*}]:-} ]] || return 0
    [[ ! -s "$1/experiment.txt" ]] || experiment="$(<"$1/experiment.txt")"
    [[ -n $experiment ]] && [[ $experiment == "$WANTED" || $experiment == "$(realpath -ms -- "$WANTED")" || $experiment == "$(realpath -m -- "$WANTED")" || $(basename "$experiment") == "$WANTED" ]]
}

# choose: fill CHOSEN with ids and EXPERIMENTS with folders, first those asked for, then what waits for any of them
choose() {
    local id name run dependency more=1
    declare -gA CHOSEN=() EXPERIMENTS=() TOUCHED=() # jobs, and arrays that have any of them
    while ((more)); do
        more=0
        while IFS=$'\t' read -r id name run dependency; do
            [[ -z $id || -n ${CHOSEN[$id]:-} ]] && continue
            if [[ $id == "$WANTED" || $name == "$WANTED" ]] || works_on "$run"; then
                [[ ! -s "$run/experiment.txt" ]] || EXPERIMENTS["$(<"$run/experiment.txt")"]=1
            elif ! waits_for_chosen "$dependency"; then
                continue
            fi
            CHOSEN[$id]="$name" more=1
            TOUCHED[${id%_*}]=1
        done <<<"$JOBS"
    done
}

# waits_for_chosen DEPENDENCY: as squeue writes it
waits_for_chosen() {
    local id
    for id in $(grep -oE ':[0-9]+(_[0-9]+)?' <<<"$1" | tr -d : || true); do
        [[ -z ${CHOSEN[$id]:-}${TOUCHED[$id]:-} ]] || return 0
    done
    return 1
}

WANTED="${WORDS[0]%/}"
sweeps
JOBS="$(our_jobs)"
declare -A MEANT=() # run folders of the sweeps that are meant as a whole: by an array, or its name, which tasks keep until they begin
[[ -z ${ARRAYS[$WANTED]:-} ]] || MEANT["${ARRAYS[$WANTED]#* }"]=1
while IFS=$'\t' read -r _ name run _; do
    [[ $name != "$WANTED" || $name != sweep-* || $run != */cell_* ]] || MEANT["${run%/cell_*}"]=1
done <<<"$JOBS"
choose
((${#CHOSEN[@]})) || die "no job in the queue is of $(printf '%q' "$WANTED"); squeue --me lists all"
[[ $WANTED == all || ${#MEANT[@]} != 0 || -d "$REPO_DIR/iridis/$WANTED" ]] || ((${#EXPERIMENTS[@]} < 2)) ||
    die "$WANTED is the name of several experiments; say which: $(printf '%q ' "${!EXPERIMENTS[@]}")"
for id in "${!CHOSEN[@]}"; do
    printf '%s %s (%s)\n' "$( ((DRY_RUN)) && echo 'would cancel:' || echo 'cancelled:')" "$id" "${CHOSEN[$id]}"
done
if ((!DRY_RUN)); then
    scancel "${!CHOSEN[@]}" # all at once: none begins because another one is gone
fi
