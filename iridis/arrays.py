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
        offsets = {array: offset for array, offset in arrays_of(run).items() if array in wanted}
        if not offsets:
            continue
        with suppress(UserError, KeyError, TypeError, OSError):
            folders = {int(cell["number"]): Path(cell["experiment"]) for cell in cells_of(run)}
            for array, offset in offsets.items():
                found |= {f"{array}_{n - offset}": folder for n, folder in folders.items() if n >= offset}
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as SLURM writes them: 0-3,7."""
    runs = []
    steps = count()
    for _, group in groupby(numbers, key=lambda number: number - next(steps)):
        first, *rest = group
        runs.append(f"{first}-{rest[-1]}" if rest else str(first))
    return ",".join(runs)
