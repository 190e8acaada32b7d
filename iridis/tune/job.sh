#!/usr/bin/env bash
# Fine-tuning of a checkpoint (a file, or an experiment's folder or name): sft on answers, dpo on pairs of answers, grpo by rewards.
# The network's flags and the recipe are those of the checkpoint; data: python -m data.tokenize --format chat|pairs|prompts.
#   DATASET=... bash iridis/tune/job.sh sft|dpo|grpo CHECKPOINT [--dry-run] [--local] [--chain N] [--pin-code] [--after JOBID] [--name EXP] [-- flags for main.py]
LIBRARY="$(dirname "$(readlink -f "$0")")/../train.sh" # sbatch would run a copy of this file from elsewhere
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, not by sh or sbatch: bash iridis/tune/job.sh" >&2; exit 2; }
# shellcheck source=iridis/train.sh
. "$LIBRARY"
parse_options "$@"
TAKES_WORDS=1

# CONFIGURATION (each can be set in the environment; SEED and EVAL_FREQ too, which are otherwise those of main.py)
: "${N_GPUS:=1}" "${N_NODES:=1}" "${TIME_LIMIT:=12:00:00}" # N_GPUS is of a node; --gres and processes follow
: "${DATASET:=}"                                # prepared examples; needed
: "${BATCH_SIZE:=8}" "${ACC_STEPS:=4}" "${ITERATIONS:=1000}"
: "${LR:=}"                                     # 1e-4 for sft, 1e-5 for dpo and grpo; ten times that with --adapt
: "${ADAPT:=}"                                  # lora:8: adapters alone are trained
: "${REWARD:=}"                                 # of grpo
: "${RECIPE:=cotformer}"                        # of a checkpoint that an earlier stage has yet to train; others know theirs

case "${WORDS[*]:0:1} ${#WORDS[@]}" in
    "sft 2") RATE=e-4 ;;
    "dpo 2" | "grpo 2") RATE=e-5 ;;
    *) die "say what and from where: sft, dpo or grpo, then a checkpoint, not $(quoted "${WORDS[@]}")" ;;
esac
[[ -n $DATASET ]] || die "DATASET is needed: the examples that python -m data.tokenize has prepared"
START="${WORDS[1]}" KIND="${WORDS[0]}" LATER=()
[[ ! -e $START ]] || START="$(realpath -ms -- "$START")"
WORDS[1]="$START" # for jobs, which start elsewhere
[[ -z $AFTER && ! $HOW =~ ^(where|state)$ ]] || LATER=(--later "$RECIPE")
STARTED="$(basename "$START")"
[[ $STARTED != *.pt ]] || STARTED="$(basename "$(dirname "$START")")-${STARTED%.pt}"

# setting: the network as the checkpoint has it, and one rate for all that is trained; that of recipe gpt would follow its batch
setting() {
    local inherited words
    ensure_environment >&2
    inherited="$(cd "$REPO_DIR" && python -m optim.inherited "$START" --words "${LATER[@]}")" || exit $?
    mapfile -t words <<<"$inherited"
    [[ -n $inherited ]] || words=()
    [[ $inherited != gpt* ]] || words+=(--rate_scale 1 --width_scale 1 --decay_scale 1)
    recipe_flags "${words[@]}" --init_from "$START" --objective "$KIND" --dataset "$DATASET" \
        --opt adamw --lr "${LR:-$([[ -n $ADAPT ]] && echo "10$RATE" || echo "1$RATE")}" --scheduler cos --decay_schedule constant \
        --batch_size "$BATCH_SIZE" --acc_steps "$ACC_STEPS" ${ADAPT:+--adapt "$ADAPT"} ${REWARD:+--reward "$REWARD"} \
        --exp_name "$KIND-$STARTED${ADAPT:+-${ADAPT//:/_}}"
}
MODEL_FLAGS=() # the checkpoint's own
run_training "$@"
