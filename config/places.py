"""Where jobs of this clone write results and find data, as iridis/env.sh chooses."""

from __future__ import annotations

import os
from pathlib import Path

RESULTS, DATA = "results_base_folder", "data_dir"  # flags


def places() -> dict[str, str]:
    """Values of these flags: of $RESULTS_DIR and $DATA_DIR, else of a scratch folder that is there; without,
    those of main.py count.
    """
    found = {}
    clone = Path(__file__).resolve().parents[1]
    for scratch in (Path("/scratch", os.environ.get("USER", "")), clone / "scratch"):
        for flag, folder in ((RESULTS, scratch / "exps"), (DATA, scratch / "datasets")):
            if flag not in found and os.path.isdir(folder):
                found[flag] = str(folder)
    given = {RESULTS: os.environ.get("RESULTS_DIR"), DATA: os.environ.get("DATA_DIR")}
    return {**found, **{flag: value for flag, value in given.items() if value}}
