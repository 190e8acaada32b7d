#!/usr/bin/env bash
# Makes a set of examples, $DATA_DIR/NAME, from the tree sequences in $DATA_DIR/genomes/FOLDER. Goes on after a kill.
#   bash iridis/genomes-preprocess/job.sh FOLDER NAME [MASK] [--dry-run] [--local] [--after JOBID] [-- flags of data.genomes.preprocess]
# MASK: a file in $DATA_DIR/genomes, or a path from /, that says which positions are accessible.
LIBRARY="$(dirname "$(readlink -f "$0")")/../genomes.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/genomes-preprocess/job.sh" >&2; exit 2; }
# shellcheck source=iridis/genomes.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=0}" "${CPUS:=16}" "${MEMORY:=64G}" "${TIME_LIMIT:=12:00:00}"

((${#WORDS[@]} == 2 || ${#WORDS[@]} == 3)) || die "say which folder of $DATA_DIR/genomes to read, and the name of the set: tiny/base_dataset tiny_processed_narrow"
COMMAND=(python -m data.genomes.preprocess --base_dir "$DATA_DIR/genomes/${WORDS[0]}" --out_subdir "$(realpath -ms -- "$DATA_DIR/${WORDS[1]}")")
MASK="${WORDS[2]:-}"
[[ -z $MASK || $MASK == /* ]] || MASK="$DATA_DIR/genomes/$MASK"
[[ -z $MASK ]] || COMMAND+=(--bitmask "$MASK")
COMMAND+=("${FLAGS[@]}")
name_job "${WORDS[1]}"

# before_local: the flags, and what is to be read, unless a job before this one makes it
before_local() {
    "${COMMAND[@]}" --state >/dev/null || exit $?
    [[ -n $AFTER || -d "$DATA_DIR/genomes/${WORDS[0]}" ]] || die "$DATA_DIR/genomes/${WORDS[0]} is not there: bash iridis/genomes-simulate/job.sh makes it"
}

run_job "$@"
