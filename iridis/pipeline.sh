#!/usr/bin/env bash
# Queues a graph of jobs: the paper's, from the download over the trainings to the evaluations, or one of your own. Run it again
# at any time: what is finished is skipped, what is queued stays, what failed or is new is queued.
#   bash iridis/pipeline.sh [reproduce] [--dry-run] [-- flags for every training]     # Table 2, Section 5, Figure 4
#   bash iridis/pipeline.sh all [--dry-run] [-- flags for every training]             # and Tables 1, 4, 5
#   bash iridis/pipeline.sh FILE.tsv [--dry-run] [-- flags for every training]        # a table like those in iridis/graphs/
# --dry-run, also where there is no SLURM, shows the stages as a tree and how far each is. DATASET (default owt2) may name another
# prepared dataset. The download runs here, where there is internet, unless the site has a DOWNLOAD_PARTITION; DOWNLOAD_SOURCE
# names a folder or address to fetch from instead of the hub.
LIBRARY="$(dirname "$(readlink -f "$0")")/lib.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/pipeline.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"
parse_options "$@"

[[ $HOW =~ ^(submit|local)$ && $PIN_CODE == 0 && -z "$MAX_JOBS$AFTER$NAME${CHECKPOINTS[*]}${STEPS[*]}" ]] ||
    die "a pipeline takes --dry-run alone; flags for every training go after --"
TABLE="${WORDS[*]:-reproduce}"
[[ $TABLE != */* && $TABLE != *.tsv ]] || TABLE="$(realpath -ms -- "$TABLE")"
QUEUE=()
if ((!DRY_RUN)) && has_slurm; then
    [[ $HOW == submit ]] || die "a pipeline is queued, and not run here; run the packages one by one: bash iridis/<package>/job.sh --local"
    QUEUE=(--queue)
fi

ensure_environment >&2
cd "$REPO_DIR"
python -m iridis.graph "${QUEUE[@]}" "$TABLE" -- "${FLAGS[@]}" || exit $?
((DRY_RUN || ${#QUEUE[@]})) || die "there is no SLURM here; run the packages one by one: bash iridis/<package>/job.sh"
