"""Names of the files in an experiment's folder, and which of them are checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

SUMMARY = "summary.json"
STATUS = "status.json"
SEGMENTS = "segments.jsonl"
METRICS = "metrics.jsonl"
FINAL = "ckpt.pt"
BEST = "best.pt"
STOP = "stop"
# of a checkpoint's name; of all compute budgets
EVALUATION, SWEEP = "eval_summary_{}.json", "ppl_per_mac.json"
ROUTING = "routing.json"  # capacity and threshold routing at equal compute
PARTIAL = "eval_partial_{}.npz"  # of an evaluation that was cut short: of what, and a hash of its settings
PACKING = "packing"  # folder of the index of packed rows
OF_TRAINING = "training"
EVALUATIONS = (EVALUATION.format("*"), "ppl_per_mac*.json")
CORE = "CORE"  # name of this evaluation
CORE_ROW = f"eval@{CORE}"  # kind of its rows
ABANDONED, DAMAGED = "abandoned", "damaged"  # suffixes of what has been set aside
NUMBERED = re.compile(r"ckpt_(\d+)\.pt")


def window_losses_of(evaluation: str) -> str:
    """Name of the losses of single windows beside an evaluation's summary."""
    return evaluation.removesuffix(".json") + ".npz"


def core_of(evaluation: str) -> str:
    """Name of the table of CORE's tasks beside an evaluation's summary."""
    return evaluation.removesuffix(".json") + "_core.csv"


def step_of(path: Path) -> int | None:
    """N of `ckpt_N.pt`, None for any other name."""
    match = NUMBERED.fullmatch(path.name)
    return int(match.group(1)) if match else None


def numbered(folder: Path) -> list[Path]:
    """The folder's `ckpt_N.pt`, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0, reverse=True)


def intermediate(folder: Path, kept: Collection[int] = ()) -> list[Path]:
    """The numbered checkpoints, newest first, except those of kept steps, and final ones from before an
    extension (`summary_N.json`).
    """
    return [
        path
        for path in numbered(folder)
        if step_of(path) not in kept and not (folder / f"summary_{step_of(path)}.json").exists()
    ]


def free_name(path: Path, suffix: str) -> Path:
    """A name to set a file aside: its own and a suffix, with .2, .3 and so on where that is taken."""
    first = path.with_name(f"{path.name}.{suffix}")
    target, n = first, 1
    while os.path.lexists(target):
        n += 1
        target = first.with_name(f"{first.name}.{n}")
    return target
