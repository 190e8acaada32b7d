#!/usr/bin/env bash
# Everything that only a GPU can show, as one table and one JSON file: bash bench/gpu.sh [--minutes 8] [--cpu] [--help]
# Needs the repository and a Python that has torch: $PYTHON, the project's environment, or python3. No network.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

# has_torch PYTHON: whether it is there and has torch and numpy, which torch's own tensors share memory with
has_torch() {
    "$1" -c 'import importlib.util as i, sys; sys.exit(not (i.find_spec("torch") and i.find_spec("numpy")))' 2>/dev/null
}

for python in "${PYTHON:-}" .venv/bin/python python3 python; do
    if [[ -n $python ]] && has_torch "$python"; then
        exec "$python" -m bench.gpu "$@"
    fi
done
printf 'bench/gpu.sh: error: no Python with torch and numpy here: load its module, activate its environment, or set PYTHON\n' >&2
exit 2
