"""Sweep files, and hand-written experiments of their cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from config.sweep import Cell, Sweep, read_sweep
from tests.statuses import experiment, metric, segment

FLAGS = {"dataset": "stdlib", "iterations": 100, "n_embd": 64, "n_head": 4}


def write_sweep(place: Path, name: str = "rates", **content: Any) -> Path:
    path = place / f"{name}.json"
    path.write_text(json.dumps({"flags": FLAGS, **content}))
    return path


def read(place: Path, **content: Any) -> Sweep:
    return read_sweep(write_sweep(place, **content), {"results_base_folder": str(place / "exps")})


def folder_of(cell: Cell) -> Path:
    folder = cell.resolved().folder
    assert folder is not None, cell.resolved().problems
    return folder


def finish(cell: Cell, value: float, **more: Any) -> Path:
    """A finished experiment: 100 steps in an hour on two processes, and its validation losses."""
    metrics = [
        metric(50, "eval", val_loss=value + 1),
        metric(100, "eval", val_loss=value + 0.5),
        metric(100),
        metric(100, "final", val_loss=value),
    ]
    return begin(cell, 100, metrics, state="finished", **more)


def begin(cell: Cell, step: int, metrics: list[dict[str, Any]] | None = None, **more: Any) -> Path:
    """An experiment that has come to a step; by default running, and evaluated at step 50."""
    folder = folder_of(cell)
    experiment(
        folder.parent,
        folder.name,
        metrics=[metric(50, "eval", val_loss=4.0), metric(step)] if metrics is None else metrics,
        segments=[segment(0, 0, step, world_size=2)],
        itr=step,
        **more,
    )
    if more.get("state") == "finished":
        summary = {"args": {"iterations": more.get("iterations", 100)}, "itr": step}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def fail(cell: Cell, step: int, reason: str) -> None:
    folder = begin(cell, step, state="failed", reason=reason)
    outcome = {"code": 2, "kind": "bad numbers", "reason": reason, "step": step, "by_hand": False}
    (folder / "outcome.json").write_text(json.dumps(outcome))
