#!/usr/bin/env bash
# Everything that only a GPU can show, as one table and one JSON file: bash bench/gpu.sh [--minutes 8] [--cpu] [--help]
# Needs the repository and a Python that has torch and NumPy: $PYTHON, the project's environment, or python3. No network.
set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# has_torch PYTHON: whether it is there, knows -P, and has torch and NumPy, which torch's own tensors share memory with
has_torch() {
    "$1" -P -c 'import importlib.util as i, sys; sys.exit(not (i.find_spec("torch") and i.find_spec("numpy")))' 2>/dev/null
}

refuse() {
    printf 'bench/gpu.sh: error: %s\n' "$1" >&2
    exit 2
}

if [[ -n ${PYTHON:-} ]] && ! has_torch "$PYTHON"; then
    refuse "PYTHON=$PYTHON is not there, is older than 3.11, or lacks torch or NumPy"
fi
for python in "${PYTHON:-}" "$root/.venv/bin/python" python3 python; do
    if [[ -n $python ]] && has_torch "$python"; then
        exec "$python" -P -m bench.gpu "$@" # -P: no module of the folder where the user is
    fi
done
refuse 'no Python (3.11 or newer) with torch and NumPy here: load its module, activate its environment, or set PYTHON'
