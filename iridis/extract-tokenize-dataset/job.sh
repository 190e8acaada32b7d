#!/usr/bin/env bash
# Turns a raw corpus into token bins; the downloaded OpenWebText2 if nothing else is named. Goes on after a kill.
#   bash iridis/extract-tokenize-dataset/job.sh [--dry-run] [--local] [--after JOBID]
#   bash iridis/extract-tokenize-dataset/job.sh --name mine --input PATH... [--text-key text] [--max-bad N] [--delete-raw]
LIBRARY="$(dirname "$(readlink -f "$0")")/../lib.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/extract-tokenize-dataset/job.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"
PASS_THROUGH=1 parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=0}" "${CPUS:=16}" "${MEMORY:=40G}" "${TIME_LIMIT:=3:00:00}"
TOKENIZE=(python -m data.tokenize --data_dir "$DATA_DIR" "${FLAGS[@]}")
SINGLETON=1 # two at once would encode the same shards

# work: restartable by shard, so a requeued job loses little
work() {
    [[ $HOW == segment ]] || exec > >(tee "$RUN_DIR/tokenize.out") 2>&1
    exec "${TOKENIZE[@]}"
}

commands() { quoted "${TOKENIZE[@]}"; }

# before_local: the flags, and what is to be encoded, unless a job before this one fetches it
before_local() {
    [[ -z $AFTER ]] || return 0
    python - "${TOKENIZE[@]:3}" <<'END' || exit $?
import sys

from data.bins import dataset_folder, is_prepared
from data.setup import is_built_in
from data.tokenize import RAW_OWT2, parse

args = parse(sys.argv[1:])
folder = dataset_folder(args.name, args.data_dir)
inputs = args.input or ([] if is_built_in(args.name) else [folder / RAW_OWT2])
missing = [] if is_prepared(folder) and not args.force else [path for path in inputs if not path.exists()]
for path in missing:
    print(f"error: {path} is not there: bash iridis/download-dataset/job.sh --full fetches OpenWebText2, or name your own: --input", file=sys.stderr)
sys.exit(2 if missing else 0)
END
}

# prepares: print the dataset that --name names, if any
prepares() {
    local n name=""
    for n in "${!FLAGS[@]}"; do
        case "${FLAGS[n]}" in
        --name) name="${FLAGS[n + 1]:-}" ;;
        --name=*) name="${FLAGS[n]#--name=}" ;;
        esac
    done
    printf '%s\n' "$name"
}

# is_done: for a pipeline; trainings on another dataset need no OpenWebText2
is_done() {
    if [[ -n $NAMED ]]; then
        is_prepared "$NAMED"
    else
        ! is_owt2 "${DATASET:-owt2}" || is_prepared owt2
    fi
}

NAMED="$(prepares)"
if [[ -n $NAMED ]] && ! is_owt2 "$NAMED"; then
    name_job "$NAMED" # other datasets may be tokenised at the same time
fi

run_job "$@"
