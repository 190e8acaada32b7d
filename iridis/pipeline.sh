#!/usr/bin/env bash
# Queues a graph of jobs: the paper's, from the download over the trainings to the evaluations, another one, or one of your own. Run
# it again at any time: what is finished is skipped, what is queued stays, what failed or is new is queued.
#   bash iridis/pipeline.sh [reproduce] [--dry-run] [--local] [-- flags for every training]     # Table 2, Section 5, Figure 4
#   bash iridis/pipeline.sh all [--dry-run] [--local] [-- flags for every training]             # and Tables 1, 4, 5
#   bash iridis/pipeline.sh coalescence [--size tiny|paper] [--dry-run] [--local] [-- flags for every training]
#   bash iridis/pipeline.sh FILE.tsv [--dry-run] [--local] [-- flags for every training]        # a table like those in iridis/graphs/
# --dry-run shows the stages as a tree and how far each is. --local: the stages run here, each after those that it waits for,
# AT_ONCE of them at a time (default 1; 2 for --size tiny). After a failure, a Ctrl-C or a kill, the same command goes on. DATASET (default owt2) may name another prepared dataset for reproduce and all. The download runs here, where there is
# internet, unless the site has a DOWNLOAD_PARTITION; DOWNLOAD_SOURCE names a folder or address to fetch from instead of the hub.
LIBRARY="$(dirname "$(readlink -f "$0")")/lib.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/pipeline.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"

# take_size ARGUMENTS...: sets SIZE, of the table, and ARGUMENTS, what is left
take_size() {
    SIZE="" ARGUMENTS=()
    while (($#)) && [[ $1 != -- ]]; do
        case "$1" in
        --size)
            [[ $# -ge 2 && $2 =~ ^[a-z0-9]+$ ]] || die "--size needs a value: tiny or paper"
            SIZE="$2"
            shift
            ;;
        --size=*) die "write --size ${1#--size=}" ;;
        *) ARGUMENTS+=("$1") ;;
        esac
        shift
    done
    ARGUMENTS+=("$@")
}

take_size "$@"
parse_options "${ARGUMENTS[@]}"

[[ $HOW =~ ^(submit|local)$ && $PIN_CODE == 0 && -z "$MAX_JOBS$AFTER$NAME${CHECKPOINTS[*]}${STEPS[*]}" ]] ||
    die "a pipeline takes --dry-run, --local and --size alone; flags for every training go after --"
TABLE="${WORDS[*]:-reproduce}"
if [[ $TABLE == coalescence ]]; then
    TABLE="coalescence-${SIZE:-paper}"
elif [[ -n $SIZE ]]; then
    die "--size $SIZE: $TABLE has one size; coalescence has tiny and paper"
fi
[[ $TABLE != */* && $TABLE != *.tsv ]] || TABLE="$(realpath -ms -- "$TABLE")"
: "${AT_ONCE:=$([[ $SIZE == tiny ]] && echo 2 || echo 1)}"
whole_numbers AT_ONCE
((AT_ONCE)) || die "AT_ONCE must be at least 1"

HOW_TO_RUN=()
if ((!DRY_RUN)) && [[ $HOW == local ]]; then
    HOW_TO_RUN=(--local --at_once "$AT_ONCE")
elif ((!DRY_RUN)) && has_slurm; then
    HOW_TO_RUN=(--queue)
fi

ensure_environment >&2
cd "$REPO_DIR"
if ((${#HOW_TO_RUN[@]} || DRY_RUN)); then
    exec python -m iridis.graph "${HOW_TO_RUN[@]}" "$TABLE" -- "${FLAGS[@]}"
fi
python -m iridis.graph "$TABLE" -- "${FLAGS[@]}" || exit $?
die "there is no SLURM here, and whole trainings are not begun unasked: --local runs the stages on this machine"
