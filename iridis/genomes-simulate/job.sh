#!/usr/bin/env bash
# Simulates genomes into $DATA_DIR/genomes/SET. Goes on after a kill; a job that runs out of time is started again.
#   bash iridis/genomes-simulate/job.sh tiny|paper [--dry-run] [--local] [--after JOBID]
#   bash iridis/genomes-simulate/job.sh SET [--dry-run] [--local] [--after JOBID] -- --scenario NAME [flags of data.genomes.simulate]
# SHARDS=N SHARD=I in the environment: only the I-th of N parts (I counts from 0), so that N jobs share the work.
LIBRARY="$(dirname "$(readlink -f "$0")")/../genomes.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/genomes-simulate/job.sh" >&2; exit 2; }
# shellcheck source=iridis/genomes.sh
. "$LIBRARY"
parse_options "$@"

# CONFIGURATION (each can be set in the environment)
: "${N_GPUS:=0}" "${CPUS:=16}" "${MEMORY:=32G}" "${TIME_LIMIT:=12:00:00}" "${SHARDS:=1}" "${SHARD:=0}"

whole_numbers SHARDS SHARD
[[ ${WORDS[*]} =~ ^[A-Za-z0-9][A-Za-z0-9._/-]*$ ]] || die "say which set: tiny, paper, or a name of your own with -- --scenario NAME"
COMMAND=(python -m data.genomes.simulate --data_dir "$DATA_DIR/genomes/${WORDS[0]}" --shards "$SHARDS" --shard "$SHARD")
[[ " ${FLAGS[*]}" == *" --scenario"* ]] || COMMAND+=(--scenario "${WORDS[0]}")
COMMAND+=("${FLAGS[@]}")
name_job "${WORDS[0]}-$SHARD-of-$SHARDS"

# before_local: the flags, and the packages that the simulations need
before_local() { "${COMMAND[@]}" --dry_run >/dev/null || exit $?; }

run_job "$@"
