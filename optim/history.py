"""Earlier results of an experiment, when a run goes on from a point before its end: what keeps a number of
its own, what is set aside.

A file's number is that of the step that it holds, whatever the run is at. Nothing is replaced by something
else: what must make way is renamed (`ckpt_20.pt.abandoned`, `ckpt.pt.damaged`), and a reader of the folder no
longer takes it for a result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from files import sync_folder
from optim.checkpoint import damage
from optim.names import ABANDONED, BEST, DAMAGED, EVALUATIONS, FINAL, SUMMARY, free_name, numbered, step_of
from optim.peek import peek, step_in
from optim.reader import Record


def set_aside(path: Path, why: str, name: str | None = None) -> Path:
    """Rename a file to `name` (default: its own) with a suffix, `.2` and so on where that is taken; returns
    the new path.
    """
    target = free_name(path.with_name(name or path.name), why)
    os.replace(path, target)
    sync_folder(path.parent)
    return target


def make_way(path: Path, step: int) -> None:
    """Call before a checkpoint of a step is written: a file of its name but of another step is renamed to its
    own name, or set aside.

    A damaged file whose name gives this step is replaced by the good one; a damaged ckpt.pt may have been of
    any step.
    """
    there = step_in(path) if path.exists() else step
    if there == step or (there is None and step_of(path) == step):
        return
    if damage(path) is not None:
        set_aside(path, DAMAGED)
        return
    own = path.with_name(f"ckpt_{there}.pt")
    if path.name != FINAL and there is not None and there < step and not own.exists():
        _rename(path, own)
    else:
        set_aside(path, ABANDONED, own.name)


def _rename(path: Path, target: Path) -> Path:
    """Give a file a name, and set aside what has it; returns the new path."""
    if target.exists():
        set_aside(target, DAMAGED if target.suffix == ".pt" and damage(target) is not None else ABANDONED)
    os.replace(path, target)
    sync_folder(path.parent)
    return target


def keep_final(loaded: Path) -> Path:
    """Rename the final files of an experiment that is being extended to the number of their own step: they
    stay beside the new ones.

    loaded: its own checkpoint, from which the extension starts; returns where that is afterwards. A ckpt.pt
    that was passed over keeps its name; a summary whose checkpoint was passed over is set aside, as another
    checkpoint may take that number.
    """
    summary, step = loaded.with_name(SUMMARY), step_in(loaded)
    of = summary_step(summary)
    if of is not None and of == step:
        _rename(summary, summary.with_name(f"summary_{of}.json"))
    elif of is not None:
        set_aside(summary, ABANDONED, f"summary_{of}.json")
    return (
        _rename(loaded, loaded.with_name(f"ckpt_{step}.pt"))
        if loaded.name == FINAL and step is not None
        else loaded
    )


def summary_step(path: Path) -> int | None:
    """The step of a summary or an evaluation, None where there is none or it does not say."""
    step = (Record(path.parent, problems=[]).object(path.name) or {}).get("itr")
    return step if isinstance(step, int) else None


def roll_back(folder: Path, step: int) -> list[str]:
    """Set aside every checkpoint, summary and evaluation beyond a step; returns their names."""
    names = []
    for path in [*numbered(folder), folder / FINAL, folder / BEST]:
        if not path.exists():
            continue
        held = step_in(path)
        there = step_of(path) if held is None else held  # a damaged one is beyond the step if its name is
        if there is not None and there > step:
            set_aside(path, ABANDONED, f"ckpt_{there}.pt" if path.name == FINAL else None)
            names.append(path.name)
    for pattern in ("summary*.json", *EVALUATIONS):
        for path in sorted(folder.glob(pattern)):
            there = summary_step(path)
            if there is not None and there > step:
                set_aside(path, ABANDONED, f"summary_{there}.json" if path.name == SUMMARY else None)
                names.append(path.name)
    return names


def rolled_back_to(path: Path) -> int | None:
    """The step to which the training in a checkpoint was last rolled back, None for one that never was."""
    steps = (peek(path) or {}).get("rollbacks")
    return steps[-1] if isinstance(steps, Sequence) and steps and isinstance(steps[-1], int) else None
