"""Before the first step: precision, seeds, what exists already, and where to start."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distributed.world import World
from errors import UserError
from models import fp8
from optim import checkpoint
from optim.experiment import Experiment
from optim.foreign import FOREIGN
from optim.history import rolled_back_to
from optim.library_folder import file_of
from optim.names import BEST, FINAL, step_of
from optim.outcome import Ending
from optim.peek import step_in
from optim.reader import Record, read_segments
from optim.reporting import log, log_to_file
from optim.stopping import Stopper

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def set_precision(deterministic: bool) -> None:
    """TF32 products on GPUs that have them; with `deterministic`, only algorithms that give the same bits
    each time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch 2.9 recommends another interface
        torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Have glibc take large blocks from what was freed before, instead of new pages of the kernel, whose
    zeros cost as much as a pass over a large tensor. No effect with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def autocast_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that --dtype, or --muon_dtype, means on a device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def autocaster(name: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context in which the model runs."""
    dtype = autocast_dtype(name, device)
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def need_compiler(device: torch.device) -> None:
    """Raises UserError where torch.compile would find no compiler: of C++ for CPUs, of C for GPUs."""
    variable, names = (
        ("CXX", ("g++", "clang++", "c++")) if device.type == "cpu" else ("CC", ("gcc", "clang", "cc"))
    )
    if not os.environ.get(variable) and not any(map(shutil.which, names)):
        raise UserError(
            f"--compile needs a compiler ({names[0]}), and there is none here: load its module, install it,"
            " or leave --compile out"
        )


def need_graphs(world: World) -> None:
    """Raises UserError where micro-batches cannot be CUDA graphs."""
    if world.device.type != "cuda":
        raise UserError("--cuda_graphs needs a CUDA device, and this run has a CPU; leave --cuda_graphs out")
    if world.size > 1:
        raise UserError(
            f"--cuda_graphs is for one process, and these are {world.size}: sums of gradients are no part of"
            " graphs; leave --cuda_graphs out"
        )


def need_fp8(dtype: str, device: torch.device) -> None:
    """Raises UserError where a device has no matrix products in FP8, or --dtype is not what is left then."""
    missing = fp8.lacking(device)
    if missing is not None:
        raise UserError(
            f"--fp8 needs an NVIDIA GPU of compute capability {'.'.join(map(str, fp8.CAPABILITY))} or more"
            f" (Ada, Hopper, Blackwell), and {missing}; leave --fp8 out"
        )
    if autocast_dtype(dtype, device) != torch.bfloat16:
        raise UserError(
            f"--fp8 computes the rest in bfloat16: give --dtype bfloat16, or auto on a GPU, not {dtype}"
        )


def hold(folder: Path, iterations: int, ending: Ending, stopper: Stopper, closing: ExitStack) -> Experiment:
    """Take an experiment, on the main process, until `closing` is left: its lock, its outcome and its log.

    Raises UserError where another process has it, or the folder cannot be written.
    """
    experiment = Experiment(folder, iterations)
    closing.callback(experiment.close)
    stopper.is_lost = lambda: experiment.lock.lost
    ending.take(experiment.lock)
    log_to_file(folder / "train.log")
    return experiment


def seed_everything(seed: int, rank: int) -> None:
    """Seed the generators that are saved with a checkpoint. torch's is the same everywhere: all start with
    one model.
    """
    torch.manual_seed(seed)
    np.random.seed((seed + rank) % 2**32)
    random.seed(seed + rank)


def named_file(folder: Path, use_pretrained: str | None) -> Path | None:
    """The checkpoint file that --use_pretrained names, None where it names none."""
    if use_pretrained in (None, "auto"):
        return None
    path = Path(use_pretrained) if "/" in use_pretrained else folder / use_pretrained
    return file_of(path)


def is_own(folder: Path, path: Path) -> bool:
    """Whether a checkpoint lies in an experiment's own folder."""
    return path.resolve().parent == folder.resolve()


def is_own_file(folder: Path, use_pretrained: str | None) -> bool:
    """Whether --use_pretrained names a checkpoint of a finished experiment's own that is there.

    Raises UserError for one that is not, unless a segment began with its step: it may have been pruned since.
    """
    path = named_file(folder, use_pretrained)
    if path is None or not is_own(folder, path):
        return False
    if path.is_file() or path.name in (BEST, FINAL):
        return path.is_file()
    if any(row.get("start_step") == step_of(path) for row in read_segments(folder)):
        return False
    raise UserError(f"--use_pretrained {use_pretrained}: no file {path}")


def starting_point(
    folder: Path,
    use_pretrained: str | None,
    newest: Callable[[Path], tuple[Path | None, list[str]]] = checkpoint.newest_valid,
) -> Path | None:
    """The checkpoint to start from, or None for a fresh start. Raises UserError.

    newest: finds the newest checkpoint of a folder, and a line about each that it passes over.

    A chain repeats its command: one that began from a checkpoint of another run, took its own back to an
    earlier one, or extended its final one (which has its number since), goes on from what it has saved since.
    """
    wanted = named_file(folder, use_pretrained)
    own, notes = newest(folder)
    is_ours = wanted is not None and is_own(folder, wanted)
    if wanted is not None and is_ours and wanted.name == BEST and own is not None:
        raise UserError(
            f"--use_pretrained {use_pretrained}: {BEST} changes as the training goes on, so a command that is"
            " repeated would go back again and again; copy it to the ckpt_N.pt of its step, and name that"
        )
    if own is None or wanted is None or not is_ours:
        has_begun = own is not None
    elif was_rolled_back(own, wanted):
        has_begun = True
        notes = [
            *notes,
            (
                f"--use_pretrained {use_pretrained}: this training has been taken back to step"
                f" {rolled_back_to(own)} before, and goes on from {own.name} (to take it back once more, move"
                " the newer checkpoints away)"
            ),
        ]
    else:
        has_begun = wanted.name == FINAL and not wanted.is_file()
        notes = [
            *notes,
            *(
                [
                    f"--use_pretrained {use_pretrained}: there is no {FINAL} (any more), going on from"
                    f" {own.name}"
                ]
                if has_begun
                else []
            ),
        ]
    if wanted is not None and not has_begun:
        if not wanted.is_file():
            elsewhere = _of_another_loop(wanted) if is_ours else ""
            raise UserError(f"--use_pretrained {use_pretrained}: no file {wanted}{elsewhere}")
        if is_own(folder, wanted):
            return wanted
    for note in notes:
        log.info(f"warning: {note}")
    _refuse_over_lost_work(folder, use_pretrained, own)
    return own or wanted


def _of_another_loop(wanted: Path) -> str:
    """What is said of files in the working directory that another loop's name of a step may have meant."""
    step = step_of(wanted)
    names = [kind.step_name(step) for kind in FOREIGN if step is not None]
    return "".join(
        f"; {name} is this file's other name, and the one in the working directory is given by its path,"
        f" ./{name}"
        for name in names
        if Path(name).is_file()
    )


def _refuse_over_lost_work(folder: Path, use_pretrained: str | None, own: Path | None) -> None:
    """Raises UserError where a start would pass over what the experiment has saved, or had. own: its newest
    checkpoint.
    """
    if use_pretrained is None and own is not None:
        raise UserError(
            f"--use_pretrained None would start afresh over {own}; give another --exp_name, or move the"
            " checkpoints away"
        )
    saved = Record(folder).saved_step if own is None and use_pretrained is not None else 0
    if saved:
        raise UserError(
            f"{folder} had a checkpoint of step {saved}, and now has none; put it back, or move the folder"
            " away to start afresh"
        )


def was_rolled_back(own: Path, wanted: Path) -> bool:
    """Whether the training in a checkpoint has been taken back to a wanted one before, which may have been
    pruned since.
    """
    done = rolled_back_to(own)
    step = step_in(wanted) if wanted.is_file() else step_of(wanted)
    return done is not None and (done == step or (step is None and not wanted.is_file()))
