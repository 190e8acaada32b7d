#!/usr/bin/env bash
# Sets up everything that the tests need and runs all checks and tests. Options go to pytest.
#   bash tests/run.sh             all of it
#   bash tests/run.sh --fast      after each change: all checks, all quick tests and one of each slow kind; three minutes on two cores
# shellcheck source=iridis/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../iridis/lib.sh"

# install_slurm: Debian's SLURM for the tests on a real cluster, where that is possible; without it they are skipped
install_slurm() {
    if ! command -v slurmctld >/dev/null && [[ $EUID == 0 ]] && command -v apt-get >/dev/null; then
        printf 'installing slurm-wlm and munge\n'
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends slurm-wlm munge rsync; } \
            >/dev/null 2>&1 || printf 'note: that did not work; the tests on a cluster are skipped\n'
    fi
}

# check_sources: lint and types
check_sources() {
    local scripts
    printf '=== ruff\n'
    ruff check . || return
    ruff format --check --quiet . || { printf 'run: ruff format .\n'; return 1; }
    printf '=== mypy\n'
    mypy || return
    printf '=== shellcheck\n'
    mapfile -t scripts < <(find . -path ./.venv -prune -o -path ./scratch -prune -o -name '*.sh' -print -o -name '*.example' -print -o -path './.ci/run' -print)
    shellcheck -x "${scripts[@]}"
}

code=0
# run_tests ARGUMENTS...: pytest; options that select none of these tests are no failure
run_tests() {
    local none_selected=5
    python -m pytest --max-worker-restart 0 "$@" || [[ $? == "$none_selected" ]]
}

# beside COMMAND...: start it while others run, in a process group of its own: a Ctrl-C reaches it through `leaving`
BESIDE="" SAID=""
beside() {
    SAID="$(mktemp)"
    set -m
    { "$@" || exit; } >"$SAID" 2>&1 &
    BESIDE=$!
    set +m
}

# tell_beside: wait for it, show what it said, and count its failure
tell_beside() {
    [[ -n $BESIDE ]] || return 0
    wait "$BESIDE" || code=1
    BESIDE=""
    cat "$SAID"
    rm -f "$SAID"
}

# leaving: an interrupted run leaves nothing behind: what runs beside it is interrupted too, and ends its cluster
# shellcheck disable=SC2329  # the library calls it
leaving() {
    [[ -z $BESIDE ]] || kill -INT -- "-$BESIDE" 2>/dev/null || true
    tell_beside
}

# fast ARGUMENTS...: sources are checked while the tests run, as that leaves no core idle
fast() {
    beside check_sources
    printf '=== pytest\n'
    run_tests -n 2 --dist loadfile --ignore tests/slurm --ignore tests/chaos -m 'not slow or essential' "$@" || code=1
}

# on_cluster ARGUMENTS...: each worker has a cluster of its own; the file that waits longest comes first
# shellcheck disable=SC2329  # `beside` calls it
on_cluster() {
    printf '=== pytest, on a cluster\n'
    run_tests -n 3 --dist loadfile --no-loadscope-reorder tests/slurm "$@"
}

# names_tests ARGUMENTS...: whether they name files or folders of tests
names_tests() {
    local word
    for word in "$@"; do
        [[ ! -e ${word%%::*} ]] || return 0
    done
    return 1
}

# in_the_background ARGUMENTS...: what leaves a core to others
# shellcheck disable=SC2329  # `beside` calls it
in_the_background() {
    local failed=0
    check_sources || failed=1
    on_cluster "$@" || failed=1
    return "$failed"
}

# everything ARGUMENTS...: sources are checked, and then the cluster's tests run, beside the others
everything() {
    if names_tests "$@"; then
        check_sources || code=1
        run_tests -n 2 --dist loadfile "$@" || code=1
        return
    fi
    beside in_the_background "$@"
    printf '=== pytest\n'
    run_tests -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/slurm "$@" || code=1
}

FAST=0
if [[ ${1:-} == --fast ]]; then
    FAST=1
    shift
else
    PATH="$PATH:/usr/sbin"
    install_slurm
fi
ensure_environment requirements-dev.txt
cd "$REPO_DIR"
begin=$SECONDS
trap 'exit 130' INT TERM
if ((FAST)); then fast "$@"; else everything "$@"; fi
tell_beside
((code)) && verdict=failed || verdict=passed
printf '=== %s in %d min %d s\n' "$verdict" $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60))
exit "$code"
