"""Peak memory of a training step over weights and optimiser, against the plain mode; and how many sequences
fit a 24 GB GPU.

    python bench/memory.py [--n_embd 768] [--dtype float32] [--batch_size 8] [--gpu_gib 22.0]

Each way runs in a process of its own, so that none finds another's memory. The estimate is what a sequence
more leaves in memory after a forward pass of the paper's 24 layers under bfloat16 autocast, from two batch
sizes on this machine, and how many of that fit beside weights, gradients and moments; the GPU's own kernels
may want less or more.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch

from bench.common import arguments, autocast, flags, peak_growth, report, resident_mib, training_step
from models import make_model_from_args

WAYS: dict[str, dict[str, Any]] = {
    "plain": {"attention": "reference"},
    "fast": {},
    "pass": {"activation_checkpointing": "pass"},
    "block": {"activation_checkpointing": "block"},
}


def peak(way: str, device: str, dtype: str, compiled: bool, shape: dict[str, Any]) -> float:
    """Growth in MiB while one step runs, gradients included."""
    _, step = training_step(
        flags(**shape, compile=compiled and way != "plain", **WAYS[way]), device, dtype, plain=way == "plain"
    )
    step()  # makes the optimiser's state
    return peak_growth(step, device)


def kept(device: str, dtype: str, shape: dict[str, Any]) -> float:
    """MiB that a forward pass leaves for the backward one."""
    settings = flags(**shape)
    model = make_model_from_args(settings).to(device)
    idx = torch.zeros(settings.batch_size, settings.sequence_length, dtype=torch.int64, device=device)
    begin = resident_mib() if device == "cpu" else torch.cuda.memory_allocated() / 2**20
    with autocast(device, dtype):
        loss = model(idx, targets=idx)["loss"]
    end = resident_mib() if device == "cpu" else torch.cuda.memory_allocated() / 2**20
    assert loss.requires_grad
    return end - begin


def alone(work: Callable[..., float], *given: Any) -> float:
    """The result of a function of this module, called in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def grown_mib(device: str, settings: dict[str, Any]) -> dict[str, float]:
    """MiB that a sequence more keeps, of the ways `fast` and `pass`."""
    grown = {}
    for way in ("fast", "pass"):
        few, many = (
            alone(kept, device, "bfloat16", {**settings, **WAYS[way], "batch_size": size}) for size in (4, 8)
        )
        grown[way] = (many - few) / 4
    grown["pass"] += grown["fast"] / flags().n_repeat  # a pass that is computed again
    return grown


def main() -> None:
    args = arguments(
        __doc__,
        n_embd=768,
        n_layer=6,
        batch_size=8,
        sequence_length=256,
        compile=0,
        gpu_gib=22.0,
        gpu_layers=24,
    )
    # freed tensors leave the process at once, so that resident memory is live memory
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    shape = {
        "n_embd": args.n_embd,
        "n_head": max(1, args.n_embd // 64),
        "sequence_length": args.sequence_length,
    }
    peaks = {
        way: alone(
            peak,
            way,
            args.device,
            args.dtype,
            bool(args.compile),
            {**shape, "n_layer": args.n_layer, "batch_size": args.batch_size},
        )
        for way in WAYS
    }
    large = {**shape, "n_layer": args.gpu_layers}
    weights = sum(p.numel() for p in make_model_from_args(flags(**large)).parameters()) * 4 / 2**20
    grown = grown_mib(args.device, large)
    # beside weights, gradients, two moments, and half as much again for bfloat16 copies, embedding gradients
    # and slices of logits
    fits = {way: int((args.gpu_gib * 2**10 - 6 * weights) / mib) for way, mib in grown.items()}
    report(
        "memory",
        args.device,
        dtype=args.dtype,
        **shape,
        n_layer=args.n_layer,
        batch_size=args.batch_size,
        peak_mib=peaks,
        ratio={way: peaks[way] / peaks["plain"] for way in WAYS},
        gpu_gib=args.gpu_gib,
        gpu_layers=args.gpu_layers,
        mib_a_sequence=grown,
        estimated_micro_batch=fits,
    )


if __name__ == "__main__":
    main()
