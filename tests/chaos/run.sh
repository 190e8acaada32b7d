#!/usr/bin/env bash
# Faults, abuse and attack against the real programs; docs/reliability.md says what is promised. Other options go to pytest.
#   bash tests/chaos/run.sh           the part that every test run has
#   bash tests/chaos/run.sh --full    all: about an hour, and SOAK_MINUTES (120) of soak
# shellcheck source=iridis/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../iridis/lib.sh"

options=()
for option in "$@"; do
    if [[ $option == --full ]]; then export CHAOS=full; else options+=("$option"); fi
done
ensure_environment requirements-dev.txt
cd "$REPO_DIR"
exec python -m pytest tests/chaos "${options[@]}"
