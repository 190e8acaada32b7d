"""Small real runs that are stopped, killed and continued, and what their folders hold."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import torch

from tests.programs import STOPPED, command, folder, start, status, train

SMALL = {
    "model": "lncot",
    "n_repeat": 2,
    "n_embd": 16,
    "n_head": 2,
    "n_layer": 3,
    "sequence_length": 16,
    "batch_size": 2,
    "acc_steps": 2,
    "eval_freq": 0,
    "log_freq": 5,
    "save_checkpoint_freq": 10,
    "iterations": 40,
    "dropout": 0.0,
}


def small(results: Path, **changes: Any) -> Any:
    return train(results, **{**SMALL, **changes})


def disturbed(results: Path, step: int, number: signal.Signals, **changes: Any) -> int:
    """Train until this very run has a step or more behind it, then send a signal; the exit code."""
    process = start(command(results, **{**SMALL, "log_freq": 1, "iterations": 100_000, **changes}))
    assert process.stdout is not None
    for line in process.stdout:
        told = re.match(r"step (\d+)/", line)
        if told and int(told[1]) >= step:
            process.send_signal(number)
            break
    process.communicate(timeout=120)
    return process.returncode


def stopped_after(results: Path, step: int, **changes: Any) -> int:
    """Train until a step is done, then stop cleanly; the step at which that was."""
    assert disturbed(results, step, signal.SIGTERM, **changes) == STOPPED
    return status(results)["itr"]


def killed_after(results: Path, step: int, **changes: Any) -> None:
    assert disturbed(results, step, signal.SIGKILL, **changes) == -signal.SIGKILL


def steps_in(results: Path) -> dict[str, int]:
    """The step that each checkpoint holds, by file name; files that hold none are left out."""
    found = {}
    for path in folder(results).glob("*.pt*"):
        try:
            found[path.name] = torch.load(path, weights_only=True)["itr"]
        except Exception:  # damaged on purpose
            continue
    return found


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for place in (len(raw) // 2, len(raw) // 2 + 1):
        raw[place] ^= 255
    path.write_bytes(raw)
