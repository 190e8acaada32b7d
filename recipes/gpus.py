"""--gpus: which GPUs a run without a scheduler uses. One is its device; of several each has a process."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from config.values import Problem
from errors import UserError

MAIN = Path(__file__).resolve().parent.parent / "main.py"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def problems(args: Namespace) -> list[Problem]:
    """Of flags; a job's GPUs are those that its scheduler gives it."""
    if args.gpus is None:
        return []
    given = " ".join(map(str, args.gpus))
    if "SLURM_JOB_ID" in os.environ:
        line = f"--gpus {given} is for a run without a scheduler: a job has the GPUs that it was given"
        return [Problem(f"{line}; leave it out", "gpus")]
    if len(set(args.gpus)) < len(args.gpus):
        return [Problem(f"--gpus {given} names a GPU twice", "gpus")]
    if args.device != "auto":
        line = f"--gpus {given} and --device {args.device} both say where to train: give one"
        return [Problem(line, "gpus", "device")]
    if args.acc_steps % len(args.gpus):
        line = (
            f"--grad-accum {args.acc_steps} cannot be shared by {len(args.gpus)} processes, of --gpus {given}"
        )
        return [Problem(line, "gpus", "acc_steps")]
    return []


def notes(args: Namespace) -> list[str]:
    """Where there is no GPU."""
    if args.gpus is None or _count():
        return []
    return ["--gpus has no effect: there is no GPU here; the training runs on the CPU"]


def _count() -> int:
    import torch

    return torch.cuda.device_count()


def begin(args: Namespace, words: Sequence[str]) -> None:
    """With one GPU: make it the device. With several: put torchrun in the place of this process.

    Raises UserError for a GPU that is not there.
    """
    from distributed.launch import under_torchrun

    if args.gpus is None or under_torchrun() or not _count():
        return
    if max(args.gpus) >= _count():
        raise UserError(f"--gpus {' '.join(map(str, args.gpus))}: there are {_count()} GPUs here, from 0 on")
    if len(args.gpus) == 1:
        args.device = f"cuda:{args.gpus[0]}"
        return
    names = os.environ.get(VISIBLE, "").split(",")
    if names == [""]:
        names = [str(number) for number in range(_count())]
    chosen = [names[number] for number in args.gpus]
    command = [
        sys.executable,
        "-m",
        "distributed.torchrun",
        "--standalone",
        "--nproc_per_node",
        str(len(chosen)),
    ]
    path = os.pathsep.join(filter(None, [str(MAIN.parent), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, VISIBLE: ",".join(chosen), "PYTHONPATH": path}
    os.execve(sys.executable, [*command, str(MAIN), *words], environment)
