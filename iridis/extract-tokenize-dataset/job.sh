#!/usr/bin/env bash
# Turns a raw corpus into token bins; the downloaded OpenWebText2 if nothing else is named. Goes on after a kill.
#   bash iridis/extract-tokenize-dataset/job.sh [--dry-run] [--local] [--after JOBID]
#   bash iridis/extract-tokenize-dataset/job.sh --name mine --input PATH... [--text-key text] [--max-bad N] [--delete-raw]
# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
PASS_THROUGH=1 parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=0}" "${CPUS:=16}" "${MEMORY:=40G}" "${TIME_LIMIT:=3:00:00}"
SINGLETON=1 # two at once would encode the same shards

# work: restartable by shard, so a requeued job loses little
work() {
    [[ $HOW == segment ]] || exec > >(tee "$RUN_DIR/tokenize.out") 2>&1
    exec python -m data.tokenize --data_dir "$DATA_DIR" "${FLAGS[@]}"
}

is_done() { is_prepared owt2; }

run_job "$@"
