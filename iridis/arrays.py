"""Sweeps in the queue: which task of which array trains which experiment. Needs no torch.

The run folder of a submission, iridis/sweep/run_N, holds

    cells.json      its cells, as they were submitted: number, label, words of main.py, experiment folder
    arrays.txt      a line "ID OFFSET" for each array; its task K trains the cell of number OFFSET + K
    cell_NUMBER/    for each cell that was submitted, what an ordinary run folder has
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import count, groupby
from pathlib import Path
from typing import Any

from errors import UserError
from files import read_json
from optim.outcome import read_outcome

CELLS, ARRAYS = "cells.json", "arrays.txt"
PACKAGE = "sweep"
ARRAY_LINE = re.compile(r"(\d+) (\d+)")


def mark_of(folder: Path) -> str:
    """What ends the names of an experiment's jobs: name_job of iridis/lib.sh takes it from the folder's
    path.
    """
    return hashlib.sha256(os.fsencode(f"{folder}\n")).hexdigest()[:8]


def arrays_of(run: Path) -> dict[str, int]:
    """Offset of each array of a submission, by its id; empty before one is submitted."""
    with suppress(OSError, UnicodeDecodeError):
        found = map(ARRAY_LINE.fullmatch, (run / ARRAYS).read_text().splitlines())
        return {line[1]: int(line[2]) for line in found if line}
    return {}


def cells_of(run: Path) -> list[Mapping[str, Any]]:
    """The cells of a submission. Raises UserError where they cannot be read."""
    cells = (read_json(run / CELLS) or {}).get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise UserError(f"{run / CELLS} holds no cells")
    return cells


def experiments(packages: Path, arrays: Iterable[str]) -> dict[str, Path]:
    """Experiment folder of each task of these arrays, by its name in the queue, ARRAY_TASK.

    packages: iridis/ of their clone; what its run folders do not tell is left out.
    """
    wanted, found = set(arrays), dict[str, Path]()
    for run in packages.glob(f"{PACKAGE}/run_*") if wanted else ():
        offsets = arrays_of(run)
        if wanted.isdisjoint(offsets):
            continue
        with suppress(UserError, KeyError, TypeError, OSError):
            for cell in cells_of(run):
                number = int(cell["number"])
                begun = {array: offset for array, offset in offsets.items() if offset <= number}
                array = max(begun, key=lambda array: begun[array], default="")
                if array in wanted:
                    found[f"{array}_{number - begun[array]}"] = Path(cell["experiment"])
    return found


def failures(packages: Path) -> dict[Path, str]:
    """Why the last start of a cell failed, by its experiment folder; also where it was refused before it
    had one.
    """
    found: dict[Path, str] = {}
    outcomes = {
        path: path.stat().st_mtime_ns for path in packages.glob(f"{PACKAGE}/run_*/cell_*/outcome*.json")
    }
    for path in sorted(outcomes, key=lambda path: outcomes[path]):
        with suppress(OSError, UnicodeDecodeError):
            folder, outcome = (
                Path((path.parent / "experiment.txt").read_text().removesuffix("\n")),
                read_outcome(path),
            )
            found.pop(folder, None)
            if outcome is not None and outcome.state == "failed":
                found[folder] = outcome.reason
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as SLURM writes them: 0-3,7."""
    runs = []
    steps = count()
    for _, group in groupby(numbers, key=lambda number: number - next(steps)):
        first, *rest = group
        runs.append(f"{first}-{rest[-1]}" if rest else str(first))
    return ",".join(runs)
