# shellcheck shell=bash
# What every job.sh needs: options, the environment, the run folder, submission, and the start of programs on nodes.
# A job.sh sources this (or train.sh, evaluate.sh), sets its configuration, defines `work`, and calls `run_job`.

# sh reads this far: it has none of what follows
case "${BASH_VERSION:-}:${SHELLOPTS:-}" in
*:*posix* | :*)
    if [ -n "${POSIXLY_CORRECT+x}" ]; then
        echo "error: POSIXLY_CORRECT in the environment takes from bash what this needs: env -u POSIXLY_CORRECT bash $0" >&2
    else
        echo "error: this is for bash, not for sh: bash $0" >&2
    fi
    exit 2
    ;;
esac

# bash before 4.4 takes an empty array for an unset variable; macOS has such a bash, and other tools under the names of GNU's
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)) ||
    ! { realpath -ms -- / && stat -c %.9Y / && date -d @0 && sha256sum </dev/null; } >/dev/null 2>&1; then
    printf 'error: the job scripts are for Linux: they need bash 4.4 or newer (this is %s) and the realpath, stat, date and sha256sum of %s\n' \
        "$BASH_VERSION" "GNU coreutils. macOS: brew install bash coreutils, and put coreutils' libexec/gnubin first into PATH" >&2
    exit 2
fi
set -Eeuo pipefail
# nothing ends in silence; bad input (2) has been reported by whoever met it
REPORTED=0 # 1: why this script ends has been said
exec 7>&2 || exec 2>/dev/null 7>&2 # stderr for last words, also from within a command whose output is discarded
trap 'code=$?; ((code == 2)) || err_words "$code" "${BASH_SOURCE[0]:-$0}" "$LINENO"' ERR
trap 'leave "$?"' EXIT

# err_words CODE FILE LINE: that a command failed
err_words() {
    printf 'error: %s, line %s: a command failed with code %s\n' "$2" "$3" "$1" >&2
    [[ ! /dev/fd/2 -ef /dev/fd/7 ]] || REPORTED=1
}

# leave CODE: last words of a script that something else has ended: an unset variable, an exit in the site's code
leave() {
    exec 2>&7
    (($1 == 0 || $1 == 2 || REPORTED)) || printf 'error: %s ended with code %s%s\n' "$0" "$1" "${FOREIGN:+, in \`$FOREIGN\`}" >&2
    leaving
}
leaving() { :; } # a kind of job may define it anew

# foreign COMMAND...: run shell code of the site or the user here. It is not written for the options that are set above, and
# what it changes of them, of traps and of IFS does not last.
foreign() {
    local FOREIGN="$*" IFS=$' \t\n' code=0 options
    options="$(set +o; shopt -p; trap -p EXIT ERR)"
    set +Eeuo pipefail
    "$@" || code=$?
    eval "$options"
    set -Eeuo pipefail
    return "$code"
}

# die MESSAGE: one line, exit code 2
die() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# shellcheck source=iridis/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# what a user's profile may set for commands typed by hand would change what these scripts ask SLURM for, and what it answers
unset SBATCH_WAIT SBATCH_ARRAY_INX SBATCH_GRES "${!SBATCH_GPUS@}" SBATCH_NTASKS_PER_GPU SBATCH_MEM_PER_GPU SBATCH_CPUS_PER_GPU \
    SBATCH_CLUSTERS SBATCH_GET_USER_ENV SLURM_CLUSTERS SLURM_TIME_FORMAT \
    "${!SQUEUE_@}" "${!SINFO_@}" "${!SCANCEL_@}" "${!SCONTROL_@}" "${!SACCT_@}"

PYTHON_AT_LEAST=3.11
TORCH_SOURCE=.torch-source            # the file of an environment that says which torch it has from TORCH_INDEX_URL
JOB_SCRIPT="$(readlink -f "$0")"
PACKAGE_DIR="$(dirname "$JOB_SCRIPT")"
JOB_NAME="$(basename "$PACKAGE_DIR")" # a training adds its experiment
LEAD=120                              # seconds before the time limit at which the batch shell gets SIGUSR1
NAME_PREFIX="$JOB_NAME"
TAKES_WORDS=0                         # 1: a package whose arguments may be plain words, such as a model and its size
SINGLETON=0                           # 1: never two jobs of this name at once
# this job, as SLURM's commands take it: of a task of an array, SLURM_JOB_ID may be the id of the whole array
THIS_JOB="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}"
: "${THIS_JOB:=${SLURM_JOB_ID:-}}"
ARRAY=""                              # of a submission: the tasks of its array, as sbatch takes them
LOGS="slurm_%j"                       # the logs of a job in its run folder, with sbatch's patterns
CHAINS=0                              # 1: a job goes on in another one, and is asked to stop before its time limit
LABELS=() STEPS=()                    # of an evaluation: what its checkpoints are called, and which steps of them are asked for
CLONE_DIR="$REPO_DIR"                  # where the user works, whatever the code runs from
LINKS_DIR="$SCRATCH_DIR/.chains"      # for each job that another has taken the place of, a file with the id of that one

# usage: the comment at the head of the job script
usage() {
    sed -n '2,/^[^#]/{/^# shellcheck/d;s/^# \{0,1\}//p;}' "$JOB_SCRIPT"
}

# add_checkpoint WORD: a path, or LABEL=PATH; a word that is there as a path is one
add_checkpoint() {
    local label="" path="$1"
    if [[ ! -e $1 && $1 =~ ^([A-Za-z0-9_][A-Za-z0-9_.-]*)=(.+)$ ]]; then
        label="${BASH_REMATCH[1]}" path="${BASH_REMATCH[2]}"
        [[ ! $label =~ ^(done|code|.*\.(txt|json|png|pdf|md|tex|npz|out|err))$ ]] ||
            die "--checkpoint $1: a run folder has files of such a name; take another label than $label"
        [[ " ${LABELS[*]} " != *" $label "* ]] || die "--checkpoint $1: $label is the label of another checkpoint"
    fi
    LABELS+=("$label")
    CHECKPOINTS+=("$(realpath -ms -- "$path")")
}

# add_step WORD: one of the steps that are asked for
add_step() {
    [[ $1 =~ ^[1-9][0-9]{0,11}$ ]] || die "--steps $1: must be numbers of steps, such as 40000 60000"
    STEPS+=("$1")
}

# parse_options ARGUMENTS...: sets HOW, DRY_RUN, PIN_CODE, MAX_JOBS, AFTER, NAME, CHECKPOINTS, LABELS (one for each, empty where it has
# none), STEPS, RUN_DIR, WORDS and FLAGS (what follows --).
# With PASS_THROUGH=1, options that are not the job library's belong to FLAGS.
parse_options() {
    HOW=submit DRY_RUN=0 PIN_CODE=0 MAX_JOBS="" AFTER="" NAME="" RUN_DIR="" CHECKPOINTS=() LABELS=() STEPS=() WORDS=() FLAGS=()
    local pass="${PASS_THROUGH:-0}" label labelled=0
    [[ $pass == 0 || $# == 0 || $1 == -* ]] || die "unknown word $1 (bash $JOB_SCRIPT --help lists the options)"
    while (($#)); do
        if [[ $pass == 1 && ! $1 =~ ^--(dry-run|local|state|after|segment|pin-code|help|)$ ]]; then
            FLAGS+=("$1")
            shift
            continue
        fi
        case "$1" in
        --dry-run) DRY_RUN=1 ;;
        --pin-code) PIN_CODE=1 ;;
        --local | --where | --state | --replot) HOW="${1#--}" ;;
        --chain | --after | --name | --segment | --checkpoint | --steps)
            [[ $# -ge 2 && -n $2 ]] || die "$1 needs a value"
            case "$1" in
            --chain) MAX_JOBS="$2" ;;
            --after) AFTER="$2" ;;
            --name) NAME="$2" ;;
            --checkpoint)
                add_checkpoint "$2"
                while [[ ${3:-} == [!-]*[=/]* || ${3:-} == /* ]]; do # a word of a training is no path and has no =
                    add_checkpoint "$3"
                    shift
                done
                ;;
            --steps)
                add_step "$2"
                while [[ ${3:-} =~ ^[0-9]+$ ]]; do
                    add_step "$3"
                    shift
                done
                ;;
            --segment) HOW=segment RUN_DIR="$2" ;;
            esac
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            FLAGS+=("${@:2}")
            break
            ;;
        -*) die "unknown option $1 (bash $JOB_SCRIPT --help lists them); flags for the program go after --" ;;
        *) WORDS+=("$1") ;;
        esac
        shift
    done
    for label in "${LABELS[@]}"; do labelled=$((labelled + (${#label} > 0))); done
    ((!labelled || labelled == ${#LABELS[@]})) || die "label every checkpoint or none: --checkpoint LABEL=DIR_OR_FILE"
    [[ -z $MAX_JOBS || $MAX_JOBS =~ ^[1-9][0-9]{0,5}$ ]] || die "--chain $MAX_JOBS: must be a number of jobs, at least 1"
    [[ -z $AFTER || $AFTER =~ ^[0-9]+(:[0-9]+)*$ ]] || die "--after $AFTER: must be a job id, or several joined by :"
}

# new_run_dir PACKAGE_DIR: make the next free run_N in it and print its path; mkdir decides a race
new_run_dir() {
    local n=0
    until mkdir "$1/run_$n" 2>/dev/null; do
        [[ -d "$1/run_$n" ]] || die "cannot make a folder in $1, which is $(stat -c %U "$1")'s; work in a clone of your own: git clone $(quoted "$REPO_DIR")"
        n=$((n + 1))
    done
    printf '%s\n' "$1/run_$n"
}

# find_python: print the first interpreter that is new enough
find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (${PYTHON_AT_LEAST/./, }))" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python $PYTHON_AT_LEAST or newer found; install one, or name it: PYTHON=/path/to/python3 bash ..."
}

# has_conda: whether the site's conda is to be used
has_conda() {
    [[ $USE_CONDA == auto ]] && type module >/dev/null 2>&1 && foreign module load conda >/dev/null 2>&1 && command -v conda >/dev/null
}

# check_torch_version: refuse a TORCH_VERSION that is no version, or outside the range of requirements.txt
check_torch_version() {
    local range least beyond
    [[ -n $TORCH_VERSION ]] || return 0
    range="$(grep -oE '^torch>=[0-9.]+,<[0-9.]+' "$REPO_DIR/requirements.txt")"
    least="${range#*>=}" least="${least%,*}" beyond="${range#*<}"
    if [[ ! $TORCH_VERSION =~ ^[0-9]+(\.[0-9]+){2}(\+[a-z0-9.]+)?$ ]] ||
        printf '%s\n' "$beyond" "$TORCH_VERSION" | sort -VC || ! printf '%s\n' "$least" "$TORCH_VERSION" | sort -VC; then
        die "TORCH_VERSION must be a version within $range, such as $least.0, not $(printf '%q' "$TORCH_VERSION")"
    fi
}

# constraints: those of constraints.txt, with TORCH_VERSION as its torch where that is set
constraints() { sed "${TORCH_VERSION:+s/^torch==[^ ]*/torch==$TORCH_VERSION/}" "$REPO_DIR/constraints.txt"; }

# torch_wanted: the torch that an environment is to have, and where it is to come from
torch_wanted() { printf '%s %s\n' "$(constraints | grep -oE '^torch==[^ ]+')" "$TORCH_INDEX_URL"; }

# is_installed PREFIX STAMP: whether an environment has the requirements, and torch from TORCH_INDEX_URL where that is set
is_installed() {
    [[ -f $2 || -f "${2/%-requirements*/-requirements-dev}" ]] || return 1 # requirements-dev.txt includes the others
    [[ -z $TORCH_INDEX_URL || "$(cat "$1/$TORCH_SOURCE" 2>/dev/null)" == "$(torch_wanted)" ]]
}

# install_torch PREFIX: torch as TORCH_INDEX_URL has it, instead of any other build of it
install_torch() {
    local wanted
    wanted="$(torch_wanted)"
    [[ "$(cat "$1/$TORCH_SOURCE" 2>/dev/null)" != "$wanted" ]] || return 0
    printf 'installing %s from %s\n' "${wanted%% *}" "$TORCH_INDEX_URL"
    rm -f "$1"/.installed-* # should this fail, nothing is
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall --index-url "$TORCH_INDEX_URL" "${wanted%% *}" ||
        die "installing ${wanted%% *} from TORCH_INDEX_URL $TORCH_INDEX_URL failed, see above; https://pytorch.org lists the addresses"
    printf '%s\n' "$wanted" >"$1/$TORCH_SOURCE"
}

# install PREFIX REQUIREMENTS STAMP: make an environment, if there is none, and fill it; one at a time
install() {
    mkdir -p "$(dirname "$1")"
    if command -v flock >/dev/null; then
        exec 9>"$1.lock"
        flock 9
        if is_installed "$1" "$3"; then return 0; fi # another job has just done it
    fi
    if ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then # none, or one that a Ctrl-C left half made
        printf 'making %s\n' "$1"
        if has_conda; then
            foreign conda create --quiet --yes --prefix "$1" python=3.11 || die "conda cannot make $1"
        else
            "$(find_python)" -m venv --clear "$1" || die "cannot make $1; on Debian, apt install python3-venv"
        fi
    fi
    # what is of another torch or other requirements may be asked for again
    find "$1" -maxdepth 1 -name '.installed-*' ! -name "$(basename "${3/%-requirements*/-requirements}")*" -delete
    constraints >"$1/constraints.txt"
    if [[ -n $TORCH_INDEX_URL ]]; then
        install_torch "$1" # before the others, whose torch it then is
    elif [[ "$(cat "$1/$TORCH_SOURCE" 2>/dev/null)" != "$(torch_wanted)"* ]]; then
        rm -f "$1/$TORCH_SOURCE" # that torch is about to be replaced
    fi
    printf 'installing %s\n' "$(basename "$2")"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$2" -c "$1/constraints.txt" ||
        die "installing $2 failed, see above; on a node without internet, start the job once from a login node"
    touch "$3"
}

# stamp_of REQUIREMENTS: the name of the file in an environment that says that these requirements and this torch are installed
stamp_of() {
    printf '.installed-%s-%s\n' "$({ cat "$REPO_DIR"/requirements*.txt && constraints; } | sha256sum | cut -c1-16)" "$(basename "$1" .txt)"
}

# ensure_environment [REQUIREMENTS]: the project's environment with these requirements (of a package: REQUIREMENTS, that it sets if
# it needs more than requirements.txt) and constraints.txt, or TORCH_VERSION;
# installed anew only when one of them changes
ensure_environment() {
    local requirements="$REPO_DIR/${1:-${REQUIREMENTS:-requirements.txt}}" prefix="$VENV_DIR" stamp
    check_torch_version
    if has_conda; then prefix="$CONDA_ENV_PREFIX"; fi
    stamp="$prefix/$(stamp_of "$requirements")"
    if ! is_installed "$prefix" "$stamp"; then
        (install "$prefix" "$requirements" "$stamp") || exit $?
    fi
    PATH="$prefix/bin:$PATH"
    "$prefix/bin/python" -c '' 2>/dev/null ||
        die "$prefix/bin/python does not start: its interpreter ($(readlink -m "$prefix/bin/python")) is gone, or not yours to read; set VENV_DIR to an environment of your own"
}

# quoted WORDS...: a command line that gives these very words back to bash
quoted() {
    printf '%q ' "$@"
    printf '\n'
}

# record_run RUN_DIR COMMAND...: keep the exact command and the revision of the code beside what the run writes
record_run() {
    local run_dir="$1"
    shift
    quoted "$@" >"$run_dir/command.txt"
    {
        git -C "$REPO_DIR" rev-parse HEAD 2>/dev/null || echo "not a git checkout"
        git -C "$REPO_DIR" status --porcelain 2>/dev/null || true
    } >"$run_dir/revision.txt"
}

# read_values NAMES...: set these variables from lines NAME=VALUE on stdin; other lines are passed over
read_values() {
    local line
    while IFS= read -r line; do
        if [[ $line == *=* && " $* " == *" ${line%%=*} "* ]]; then
            printf -v "${line%%=*}" %s "${line#*=}"
        fi
    done
}

# notify SUBJECT BODY: a mail to NOTIFY_EMAIL, where there is one and the node can send it, and a message to NOTIFY_URL
notify() {
    [[ -z $NOTIFY_URL ]] || NOTIFY_URL="$NOTIFY_URL" NOTIFY_FORM="$NOTIFY_FORM" python -m iridis.notify "$1" <<<"$2" || true
    if [[ -n $NOTIFY_EMAIL ]] && command -v mail >/dev/null; then
        mail -s "$1" "$NOTIFY_EMAIL" <<<"$2" || printf 'warning: no mail could be sent to %s\n' "$NOTIFY_EMAIL" >&2
    fi
}

# has_slurm: whether there is a cluster. SLURM's programs without a configuration are none; a controller that is down is one.
has_slurm() {
    local answer
    command -v sbatch >/dev/null || return 1
    # SLURM's programs would look for it for a minute, in silence
    [[ -z ${SLURM_CONF:-} || -r $SLURM_CONF ]] || die "SLURM_CONF=$SLURM_CONF: there is no such file; unset it, or set it to the cluster's slurm.conf"
    answer="$(timeout 20 sinfo -h 2>&1)" || [[ $answer != *"configuration source"* ]] || return 1
}

# dependency: what this job waits for, as SLURM writes it
dependency() {
    local words=()
    ((!SINGLETON)) || words+=(singleton)
    [[ -z $AFTER ]] || words+=("afterok:$AFTER")
    (IFS=, && printf '%s\n' "${words[*]}")
}

# sbatch_words: fill SBATCH, the command that submits this job. Only a chain has a use for a signal before its time limit.
sbatch_words() {
    local further waits
    waits="$(dependency)"
    read -ra further <<<"$SBATCH_OPTIONS"
    [[ " $SBATCH_OPTIONS" != *" --array"* && " $SBATCH_OPTIONS" != *" -a"* ]] ||
        die "SBATCH_OPTIONS $SBATCH_OPTIONS: an array would be several jobs on one experiment; submit one for each"
    [[ " $SBATCH_OPTIONS " != *" --wait "* && " $SBATCH_OPTIONS " != *" -W "* ]] ||
        die "SBATCH_OPTIONS $SBATCH_OPTIONS: a job that submits the next one of its chain would wait for that, which waits for it"
    SBATCH=(sbatch --parsable --job-name="$JOB_NAME" --partition="$PARTITION" --time="$TIME_LIMIT" --nodes="$N_NODES"
        --ntasks-per-node=1 --cpus-per-task="$CPUS" --mem="$MEMORY" --chdir="$REPO_DIR" --requeue --open-mode=append
        --output="${RUN_DIR//%/%%}/$LOGS.out" --error="${RUN_DIR//%/%%}/$LOGS.err"
        --kill-on-invalid-dep=yes --export=ALL)
    ((!N_GPUS)) || SBATCH+=(--gres="gpu:$N_GPUS")
    [[ -z $ARRAY ]] || SBATCH+=(--array="$ARRAY")
    ((!CHAINS)) || SBATCH+=(--signal="B:USR1@$LEAD")
    [[ -z $waits ]] || SBATCH+=(--dependency="$waits")
    [[ -z $ACCOUNT ]] || SBATCH+=(--account="$ACCOUNT")
    # a chain says itself when it has finished: of most of its jobs the end is none of the training's. An array's end is one mail.
    [[ -z $NOTIFY_EMAIL ]] ||
        SBATCH+=(--mail-user="$NOTIFY_EMAIL" "--mail-type=$( ((CHAINS && !${#ARRAY})) || echo END,)FAIL,INVALID_DEPEND")
    [[ ! -s "$RUN_DIR/excluded_nodes" ]] || SBATCH+=(--exclude="$(paste -sd, "$RUN_DIR/excluded_nodes")")
    SBATCH+=("${further[@]}")
}

# checkpoint_words: fill CHECKPOINT_WORDS, the options that say which checkpoints and steps
checkpoint_words() {
    local n
    CHECKPOINT_WORDS=()
    for n in "${!CHECKPOINTS[@]}"; do CHECKPOINT_WORDS+=(--checkpoint "${LABELS[n]:+${LABELS[n]}=}${CHECKPOINTS[n]}"); done
    ((!${#STEPS[@]})) || CHECKPOINT_WORDS+=(--steps "${STEPS[@]}")
}

# segment_words: fill SEGMENT, the command that the job runs
segment_words() {
    SEGMENT=(bash "$JOB_SCRIPT" --segment "$RUN_DIR")
    [[ -z $MAX_JOBS ]] || SEGMENT+=(--chain "$MAX_JOBS")
    [[ -z $NAME ]] || SEGMENT+=(--name "$NAME")
    checkpoint_words
    SEGMENT+=("${CHECKPOINT_WORDS[@]}" "${WORDS[@]}" -- "${FLAGS[@]}")
}

# hand_to_slurm: submit this job and print its id. A job's own SLURM_ variables must not reach the next one.
hand_to_slurm() (
    sbatch_words
    segment_words
    local configuration="${SLURM_CONF:-}" id
    unset "${!SLURM_@}"
    [[ -z $configuration ]] || export SLURM_CONF="$configuration"
    id="$(printf '#!/usr/bin/env bash\nexec %s\n' "$(quoted "${SEGMENT[@]}")" | "${SBATCH[@]}")" || return
    id="$(grep -E '^[0-9]+(;.*)?$' <<<"$id" | tail -n 1)" || return # sites greet their users before it
    printf '%s\n' "${id%%;*}"
)

# submit_job: check, make the run folder, submit, and say how to watch and stop the job
submit_job() {
    local id
    AFTER="$(latest_jobs "$AFTER")" || exit $?
    before_submit
    if ((DRY_RUN)); then
        RUN_DIR="$PACKAGE_DIR/run_N"
        sbatch_words
        segment_words
        printf 'would submit: %s\n' "$(quoted "${SBATCH[@]}")"
        printf 'which runs:   %s\n' "$(quoted "${SEGMENT[@]}")"
        commands
        try_sbatch
        return
    fi
    RUN_DIR="$(new_run_dir "$PACKAGE_DIR")"
    record_run "$RUN_DIR" bash "$JOB_SCRIPT" "${ARGUMENTS[@]}"
    printf 'run folder:   %s\n' "$RUN_DIR"
    ((!CHAINS)) || [[ -z $NOTIFY_EMAIL ]] || command -v mail >/dev/null ||
        printf 'warning: there is no mail program here; where the nodes have none either, NOTIFY_EMAIL hears only of failed jobs, from SLURM\n' >&2
    with_run_dir
    ((!PIN_CODE)) || pin_code
    AFTER="$(latest_jobs "$AFTER")" || exit $? # a chain may have gone on in another job while all this was done
    if ! id="$(hand_to_slurm)"; then
        printf 'sbatch refused the job\n' >"$RUN_DIR/not_submitted.txt"
        die "sbatch refused the job, see above; $(account_hint)"
    fi
    printf '%s\n' "$id" >"$RUN_DIR/first_job.txt"
    follow_chains "$id"
    printf 'job:          %s (%s)\n' "$id" "$JOB_NAME"
    printf 'watch:        squeue -j %s; tail -F %q\n' "$id" "$RUN_DIR/slurm_$id.out"
    printf 'stop:         bash %q %q\n' "$CLONE_DIR/iridis/cancel.sh" "${EXPERIMENT:-$id}"
}

# account_hint: what to set where sbatch asks for an account or a QOS
account_hint() {
    printf 'an account that it asks for: ACCOUNT=NAME%s, in the environment or iridis/site.sh; a QOS: SBATCH_QOS. Yours: sacctmgr show associations user=%s' \
        "${ACCOUNT:+ (now $ACCOUNT)}" "$(id -un)"
}

# follow_chains ID: have a job wait for the newest link of each chain, where one has gone on since the job was submitted
follow_chains() {
    local before="$AFTER"
    AFTER="$(latest_jobs "$before" 2>/dev/null)" || return 0 # one has failed: SLURM cancels what waits for it
    if [[ -n $AFTER && $AFTER != "$before" ]] && ! scontrol update JobId="$1" Dependency="$(dependency)"; then
        scancel "$1"
        die "job $1 was to wait for job $AFTER and could not be updated; cancelled: submit it again"
    fi
}

# try_sbatch: whether SLURM would take the job as things are: account, QOS, limits
try_sbatch() {
    local said
    said="$(unset "${!SLURM_JOB@}" && "${SBATCH[@]}" --test-only 2>&1 <<<'#!/bin/sh')" && return
    printf 'warning: for now, sbatch would refuse this: %s\n' "${said##*$'\n'}" >&2
    [[ ${said,,} != *account* ]] || printf 'warning: %s\n' "$(account_hint)" >&2
}

# pin_code: copy the code into the run folder, and have this job and those after it run from there
pin_code() {
    local code="$RUN_DIR/code" file
    git -C "$REPO_DIR" rev-parse HEAD >/dev/null 2>&1 || die "--pin-code copies what git knows, and $REPO_DIR is no checkout"
    mkdir "$code"
    git -C "$REPO_DIR" ls-files -coz --exclude-standard -- . ':!tests' | while IFS= read -r -d '' file; do
        [[ ! -e "$REPO_DIR/$file" ]] || printf '%s\0' "$file"
    done | tar -C "$REPO_DIR" --null -T - -cf - | tar -C "$code" -xf -
    [[ ! -f "$REPO_DIR/iridis/site.sh" ]] || cp -p "$REPO_DIR/iridis/site.sh" "$code/iridis/" # with its mode: it may hold a secret
    python -c 'import json, processes; print(json.dumps(processes.code_facts()))' >"$code/revision.json"
    whole_paths
    export SCRATCH_DIR TEAM_DIR VENV_DIR CONDA_ENV_PREFIX # whose defaults are in the clone
    JOB_SCRIPT="$code/${JOB_SCRIPT#"$REPO_DIR/"}" REPO_DIR="$code"
}

# whole_paths: what is meant from the clone, named in full: settings, and flags that name a file or folder there
whole_paths() {
    local name
    for name in SCRATCH_DIR TEAM_DIR DATA_DIR RESULTS_DIR VENV_DIR CONDA_ENV_PREFIX; do
        printf -v "$name" %s "$(realpath -ms -- "${!name}")"
    done
    mapfile -d '' -t FLAGS < <(python -m iridis.paths "${FLAGS[@]}")
    wait "$!" || exit $?
}

# latest_jobs IDS: the same jobs, each as the newest link of its chain, without those that have done their work. Dies where one
# has ended otherwise, or nobody knows it: nothing would wait.
latest_jobs() {
    local id now links latest=() asked="${1//:/ }" link
    for id in $asked; do
        for link in "$LINKS_DIR/${id}_"*; do # of a task of an array
            [[ ! -s $link ]] || asked+=" $(<"$link")"
        done
    done
    for id in $asked; do
        for ((links = 0; links < 1000; links++)); do
            [[ -s "$LINKS_DIR/$id" ]] || break
            id="$(<"$LINKS_DIR/$id")"
        done
        ((links < 1000)) || die "--after $1: the files in $LINKS_DIR lead in a circle; remove those of old jobs"
        now="$(state_of "$id")" || exit $?
        case "$now" in
        "") die "--after $id: SLURM knows no such job" ;;
        COMPLETED) ;;
        UNFINISHED) die "--after $id: that job has ended and its training is not finished; give the job that goes on with it (squeue --me)" ;;
        *ED | TIMEOUT | *_FAIL | OUT_OF_MEMORY | DEADLINE)
            [[ $now == SUSPENDED || $now == REQUEUED ]] || die "--after $id: that job has ended as $now; nothing can wait for it to succeed"
            ;;
        esac
        [[ $now == COMPLETED || " ${latest[*]} " == *" $id "* ]] || latest+=("$id")
    done
    (IFS=: && printf '%s\n' "${latest[*]}")
}

# worst_state: of the states on stdin, as of an array's tasks: the first failure, else the first that is no end, else the first
worst_state() {
    awk '{ rank = /FAIL|CANCELLED|TIMEOUT|OUT_OF_MEMORY|DEADLINE/ ? 3 : $1 == "COMPLETED" ? 1 : 2 }
        rank > most { most = rank; state = $1 } END { print state }'
}

# state_of ID: as SLURM names it, which forgets ended jobs within minutes; then as accounting, or the job's own run folder, says
state_of() {
    local JobState="" FINISHED=0 log run
    JobState="$(scontrol show job -o "$1" 2>/dev/null | sed -nE 's/.* JobState=([^ ]+).*/\1/p' | worst_state || true)"
    [[ -n $JobState ]] || JobState="$(sacct -n -X -P -j "$1" -o State 2>/dev/null | worst_state || true)"
    # of an array, whose tasks may have ended at different times
    if [[ -z $JobState || $JobState == COMPLETED ]] && grep -qsE "^$1 " "$REPO_DIR"/iridis/sweep/run_*/arrays.txt; then
        ensure_environment >&2
        read_values JobState < <(cd "$REPO_DIR" && python -m iridis.cells --ended "$1" --links "$LINKS_DIR")
    fi
    for log in "$REPO_DIR"/iridis/*/run_*/{,cell_*/}slurm_"$1".out; do
        [[ (-z $JobState || $JobState == COMPLETED) && -e $log ]] || continue
        run="$(dirname "$log")"
        if [[ -s "$run/experiment.txt" ]]; then # a job of a chain also ends well where another one goes on
            ensure_environment >&2
            read_values FINISHED < <(cd "$REPO_DIR" && python -m optim.reader "$(<"$run/experiment.txt")")
            [[ $JobState != COMPLETED || $FINISHED != 0 ]] || JobState=UNFINISHED
        fi
        [[ -n $JobState ]] || JobState="$([[ $FINISHED == 0 && ! -e "$run/done" ]] && echo FAILED || echo COMPLETED)"
    done
    printf '%s\n' "$JobState"
}

# name_job THING: a name of its own for what this job works on, by which squeue and --dependency=singleton know it
name_job() {
    JOB_NAME="$NAME_PREFIX-$(basename "$1" | tr -c 'A-Za-z0-9._=\n-' _ | cut -c1-60)-$(sha256sum <<<"$1" | cut -c1-8)"
}

# queued_job: id and state of a job of this name, or id of a sweep's task that waits for this experiment; nothing where there is none
queued_job() {
    local queued
    queued="$(squeue -h --me --name="$JOB_NAME" -o '%i (%T)' 2>/dev/null | head -n 1 || true)"
    # a task has its experiment's name from its start on
    if [[ -z $queued && -n ${EXPERIMENT:-} ]] &&
        grep -rqsxF --include=experiment.txt -e "$EXPERIMENT" "$REPO_DIR/iridis/sweep"; then
        queued="$(python -m iridis.cells --task "$EXPERIMENT" || true)"
    fi
    [[ -z $queued ]] || printf '%s\n' "$queued"
}

# is_prepared DATASET: whether its bins are there
is_prepared() {
    python -c 'import sys; from data.bins import dataset_folder, is_prepared; sys.exit(not is_prepared(dataset_folder(*sys.argv[1:])))' \
        "$1" "$DATA_DIR"
}

# is_owt2 DATASET: whether that is a name of OpenWebText2
is_owt2() {
    [[ $1 == owt2 || $1 == openwebtext2 ]]
}

# state: for iridis/graph.py: of a training, a line "experiment FOLDER"; then done, "queued ID", or todo
state() {
    local queued
    ensure_environment >&2
    identify
    [[ -z ${EXPERIMENT:-} ]] || printf 'experiment %s\n' "$EXPERIMENT"
    queued="$(queued_job)"
    if is_done; then
        printf 'done\n'
    elif [[ -n $queued ]]; then
        printf 'queued %s\n' "${queued%%[ _]*}" # of a task, its array
    else
        printf 'todo\n'
    fi
}

# Hooks that a kind of job may define anew: identify finds out what it works on, and names the job; is_done says whether
# is there already; before_submit and before_local check and may exit; commands
# prints what a dry run shows; with_run_dir writes into the run folder;
# segment_begins comes before anything else of a job on its node.
identify() { :; }
is_done() { false; }
commands() { :; }
before_local() { :; }
segment_begins() { :; }
before_submit() {
    ensure_environment
    before_local
    (cd "$REPO_DIR" && python -m iridis.preflight --partition "$PARTITION" --time "$TIME_LIMIT" --nodes "$N_NODES" --gpus "$N_GPUS" >/dev/null)
}
with_run_dir() { :; }

# commands_of_work: the commands that `work` would run, for a kind of job whose `work` does nothing beside
# shellcheck disable=SC2030,SC2031,SC2329  # in a subshell; and `work` calls them
commands_of_work() (
    local RUN_DIR="$PACKAGE_DIR/run_N"
    python() { quoted python "$@"; }
    mkdir() { :; }
    tee() { cat; }
    into() { cat; }
    find() { printf '%s/*\n' "$1"; }
    work
)

# into FILE: keep stdin there
into() { cat >"$1"; }

# job_end: when SLURM ends this job, in seconds since 1970; a job of unknown end has a year
job_end() {
    local end="${SLURM_JOB_END_TIME:-}"
    [[ -n $end ]] || end="$(squeue -h -j "$THIS_JOB" -o %e 2>/dev/null || true)"
    [[ $end =~ ^[0-9]+$ ]] || end="$(date -d "${end:-x}" +%s 2>/dev/null || echo 0)"
    ((end > $(date +%s))) || end=$(($(date +%s) + 31536000))
    printf '%s\n' "$end"
}

# on_node: what every job does first, on the first of its nodes
on_node() {
    printf '=== job %s, start %s, on %s, partition %s, %s\n' "$THIS_JOB" "${SLURM_RESTART_COUNT:-0}" "$SLURM_JOB_NODELIST" \
        "$SLURM_JOB_PARTITION" "$(date)"
    if ((N_GPUS)) && command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=index,name,memory.total,memory.used,driver_version,temperature.gpu --format=csv || true
    fi
}

# launch PROGRAM...: exec a Python program (a file, or -m MODULE) on all processes of the job; call it in a subshell
launch() {
    local cores
    cores="$(nproc)" # a laptop has fewer than the job would be given, and more threads than cores slow each other
    ((cores <= CPUS)) || cores="$CPUS"
    : "${OMP_NUM_THREADS:=$((cores > PROCESSES ? cores / PROCESSES : 1))}"
    export OMP_NUM_THREADS
    if ((N_NODES > 1)); then
        exec srun --nodes="$N_NODES" --ntasks-per-node=1 --cpus-per-task="$CPUS" --kill-on-bad-exit=1 \
            bash "$REPO_DIR/iridis/on_node.sh" "$PROCESSES" "$@"
    elif ((PROCESSES > 1)); then
        exec python -m distributed.torchrun --standalone --nproc_per_node "$PROCESSES" "$@"
    fi
    exec python "$@"
}

# run_and_wait COMMAND...: run in the background as CHILD and return its exit code; traps run meanwhile, and set WOKEN.
# One that is stuck in the file system does not end when it is killed for being OVERDUE; then nobody waits for it.
run_and_wait() {
    local code
    "$@" &
    CHILD=$!
    while :; do
        WOKEN=0 code=0
        wait "$CHILD" || code=$?
        ((WOKEN)) || break
        if ((${OVERDUE:-0})) && ! ends_within 5 "$CHILD"; then
            code=137
            break
        fi
    done
    CHILD=""
    return "$code"
}

# ends_within SECONDS PID: whether a process does
ends_within() {
    local end=$((SECONDS + $1))
    until ! grep -q '^State:[[:space:]]*[^XZ]' "/proc/$2/status" 2>/dev/null; do
        ((SECONDS <= end)) || return 1
        sleep 0.2
    done
}

# whole_numbers SETTINGS...: refuse what is none before bash calculates with it, which would run a command in an index
whole_numbers() {
    local name
    for name; do
        [[ ${!name} =~ ^(0|[1-9][0-9]{0,8})$ ]] || die "$name must be a whole number, not $(printf '%q' "${!name}")"
    done
}

# refuse_unused: options that this kind of job has no use for
refuse_unused() {
    local package kind=other
    package="$(basename "$PACKAGE_DIR")"
    ((!CHAINS)) || kind=training
    [[ -z ${TRAINED_BY:-} ]] || kind=evaluation
    [[ $HOW =~ ^(submit|local|segment)$ ]] || declare -F "$HOW" >/dev/null || die "$package has no --$HOW"
    [[ -z $MAX_JOBS || $kind == training ]] || die "$package has no --chain: its work is one job"
    [[ -z $NAME || $kind != other ]] || die "$package has no --name"
    ((!${#CHECKPOINTS[@]})) || [[ $kind == evaluation ]] || die "$package has no --checkpoint"
    ((!${#STEPS[@]})) || [[ $kind == evaluation ]] || die "$package has no --steps"
    [[ $HOW != local ]] || ((DRY_RUN)) || [[ $PIN_CODE == 0 && -z $AFTER ]] || die "--pin-code and --after are of jobs, and this runs in the foreground"
}

# run_job ARGUMENTS...: do what the options ask for. N_GPUS of a node is the one number that says how many processes run.
run_job() {
    ARGUMENTS=("$@")
    : "${N_NODES:=1}" "${N_GPUS:=0}" "${MEMORY:=16G}" "${TIME_LIMIT:=1:00:00}"
    whole_numbers N_NODES N_GPUS
    : "${CPUS:=$((N_GPUS ? 8 * N_GPUS : 8))}" "${PARTITION:=$( ((N_GPUS)) && echo "$GPU_PARTITION" || echo "$CPU_PARTITION")}"
    whole_numbers CPUS
    PROCESSES=$((N_GPUS ? N_GPUS : 1))
    [[ $CHAIN_BY == resubmit || $CHAIN_BY == requeue ]] || die "CHAIN_BY must be resubmit or requeue, not $(quoted "$CHAIN_BY")"
    ((TAKES_WORDS || !${#WORDS[@]})) || die "unknown word ${WORDS[0]} (bash $JOB_SCRIPT --help lists the options)"
    refuse_unused
    if [[ $HOW == submit ]] && ! has_slurm; then
        printf 'no SLURM here: this runs in the foreground\n' >&2
        HOW=local
    fi
    cd "$REPO_DIR"
    case "$HOW" in
    submit) submit_job ;;
    where | state | replot) "$HOW" ;;
    segment)
        SLURM_JOB_END_TIME="$(job_end)"
        export SLURM_JOB_END_TIME
        segment_begins
        ensure_environment
        on_node
        work
        # shellcheck disable=SC2031  # that is in a subshell
        : >"$RUN_DIR/done"
        ;;
    local)
        N_NODES=1
        local here
        here="$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)"
        PROCESSES=$((here < N_GPUS ? here : N_GPUS))
        ((PROCESSES)) || PROCESSES=1
        ensure_environment
        before_local
        if ((DRY_RUN)); then
            printf 'would run here, in processes: %s\n' "$PROCESSES"
            commands
            return
        fi
        RUN_DIR="$(new_run_dir "$PACKAGE_DIR")"
        printf 'run folder: %s\n' "$RUN_DIR"
        record_run "$RUN_DIR" bash "$JOB_SCRIPT" "${ARGUMENTS[@]}"
        work
        : >"$RUN_DIR/done"
        ;;
    esac
}
