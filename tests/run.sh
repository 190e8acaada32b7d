#!/usr/bin/env bash
# Sets up everything that the tests need and runs all checks and tests. Arguments go to pytest.
#   bash tests/run.sh
#   bash tests/run.sh -m 'not slow'
# shellcheck source=iridis/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../iridis/lib.sh"

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
python -m pytest "$@"
