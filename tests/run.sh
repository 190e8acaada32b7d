#!/usr/bin/env bash
# Sets up everything that the tests need and runs all checks and tests. Options go to pytest.
#   bash tests/run.sh
#   bash tests/run.sh -m 'not slow'
# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../iridis/lib.sh"

# install_slurm: Debian's SLURM for the tests on a real cluster, where that is possible; without it they are skipped
install_slurm() {
    if ! command -v slurmctld >/dev/null && [[ $EUID == 0 ]] && command -v apt-get >/dev/null; then
        printf 'installing slurm-wlm and munge\n'
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends slurm-wlm munge rsync; } \
            >/dev/null 2>&1 || printf 'note: that did not work; the tests on a cluster are skipped\n'
    fi
}

PATH="$PATH:/usr/sbin"
install_slurm
ensure_environment requirements-dev.txt
cd "$REPO_DIR"

printf '=== ruff\n'
ruff check .
printf '=== mypy\n'
mypy
printf '=== shellcheck\n'
mapfile -t scripts < <(find . -path ./.venv -prune -o -path ./scratch -prune -o -name '*.sh' -print -o -name '*.example' -print -o -path './.ci/run' -print)
shellcheck -x "${scripts[@]}"
printf '=== pytest\n'
code=0
# run_tests ARGUMENTS...: pytest; options that select none of these tests are no failure
run_tests() {
    local none_selected=5
    python -m pytest "$@" || [[ $? == "$none_selected" ]] || code=1
}
run_tests -n 2 --dist loadfile --ignore tests/slurm "$@"
printf '=== pytest, on a cluster\n'
run_tests tests/slurm "$@"
exit "$code"
