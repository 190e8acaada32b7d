#!/usr/bin/env bash
# Queues the reproduction of the paper as one graph of jobs: download -> tokenise -> trainings -> evaluations. Run it again at
# any time: what is finished is skipped, what is queued stays, what failed or is new is queued.
#   bash iridis/pipeline.sh [reproduce] [--dry-run] [-- flags for every training]     # Table 2, Section 5, Figure 4
#   bash iridis/pipeline.sh all [--dry-run] [-- flags for every training]             # and the models of Table 1
# DATASET (default owt2) may name another prepared dataset. The download runs here, where there is internet, unless the site
# has a DOWNLOAD_PARTITION; DOWNLOAD_SOURCE names a folder or address to fetch from instead of the hub.
# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_options "$@"

: "${DATASET:=owt2}"
export DATASET DOWNLOAD_PARTITION
WITH=(env)        # what a stage's job.sh is started with
declare -A JOB=() # of a stage: its id, or "done", or a line that says why there is none

# stage NAME "EARLIER STAGES" PACKAGE ARGUMENTS...: queue a stage behind those it waits for, unless that is not needed
stage() {
    local name="$1" earlier ids="" answer said
    local script="$REPO_DIR/iridis/$3/job.sh"
    answer="$("${WITH[@]}" bash "$script" --state "${@:4}")" || die "stage $name: see above"
    if [[ $answer != todo ]]; then
        JOB[$name]="${answer#queued }"
    else
        for earlier in $2; do
            [[ ${JOB[$earlier]} != "done" ]] || continue
            ids="${ids:+$ids:}${JOB[$earlier]}"
        done
        if ((DRY_RUN)); then
            JOB[$name]="new"
        else
            said="$("${WITH[@]}" bash "$script" ${ids:+--after "$ids"} "${@:4}")" || die "stage $name: see above"
            JOB[$name]="$(sed -nE 's/^job: +([0-9]+) .*/\1/p' <<<"$said")"
            [[ -n ${JOB[$name]} ]] || JOB[$name]="done" # it ran here, or turned out to be finished
        fi
    fi
    printf '%-14s %-10s %s\n' "$name" "${JOB[$name]}" "${2:+after ${2// /, }}"
}

# training NAME PACKAGE WORDS...: a stage of its own
training() {
    stage "$1" "$DATA" "$2" "${@:3}" -- "${FLAGS[@]}"
}

# evaluation NAME TRAINING PACKAGE TRAINED_BY WORDS...: of what a training stage makes
evaluation() {
    local experiment
    experiment="$(bash "$REPO_DIR/iridis/$4/job.sh" --where "${@:5}" -- "${FLAGS[@]}")" || die "stage $1: see above"
    stage "$1" "$2" "$3" --checkpoint "$experiment"
}

if [[ $HOW == local ]] || ! has_slurm; then
    die "there is no SLURM here; run the packages one by one: bash iridis/<package>/job.sh"
fi
case "${WORDS[*]:-reproduce}" in
reproduce | all) ;;
*) die "unknown pipeline ${WORDS[*]}; there are reproduce and all" ;;
esac
cd "$REPO_DIR"
printf '%-14s %-10s\n' stage job
DATA=""
if [[ $DATASET == owt2 || $DATASET == openwebtext2 ]]; then
    WITH=(env -u PARTITION -u N_GPUS -u CPUS -u MEMORY -u TIME_LIMIT) # those given are for the trainings
    stage download "" download-dataset --full ${DOWNLOAD_SOURCE:+--source "$DOWNLOAD_SOURCE"}
    stage tokenise download extract-tokenize-dataset
    WITH=(env)
    DATA=tokenise
fi
training cot-res cot-res-train
training lncot lncot-train
ITERATIONS=60000 training lncot-60k lncot-train --name lncot_60k
training adm adm-train
evaluation eval-cot-res cot-res eval-cot-res cot-res-train
evaluation eval-lncot lncot eval-lncot lncot-train
evaluation eval-lncot-60k lncot-60k eval-lncot lncot-train --name lncot_60k
evaluation eval-adm adm eval-adm adm-train
evaluation lncot-exp4 adm lncot-exp4 adm-train
if [[ ${WORDS[0]:-} == all ]]; then
    for size in 12 24 48; do training "base-$size" base-train base "$size"; done
    for model in but cot; do
        for size in 12x2 12x3 12x5 24x2 24x3 24x5; do training "$model-$size" base-train "$model" "$size"; done
    done
fi
