"""What the benchmarks share: models by flags, ways that take turns in one process, medians, memory, the
matmul rate.
"""

from __future__ import annotations

import ctypes
import platform
import statistics
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import config
from files import json_text
from models import fp8, make_model_from_args
from models.transformer import Transformer
from optim.optimizers import make_optimizer
from optim.setup import set_precision

MATRIX = 2048  # side of the square matrices whose product sets the rate


def arguments(description: str | None, **defaults: int | str) -> Namespace:
    """Options --NAME with these defaults, and --device and --dtype."""
    parser = ArgumentParser(description=description)
    for name, default in {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "dtype": "float32",
        **defaults,
    }.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    set_precision(deterministic=False)
    return args


def flags(**given: Any) -> Namespace:
    """All flags of main.py: LN-CoTFormer of 2 + 3 x 5 + 1 layers, T 256, but for what is given."""
    return config.add_defaults(
        {
            "model": "lncot",
            "n_layer": 6,
            "n_layer_begin": 2,
            "n_layer_end": 1,
            "n_repeat": 5,
            "batch_size": 8,
            "depth_embedding": "linear_learned",
            "sequence_length": 256,
            **given,
        }
    )


def flags_of_gpt(**given: Any) -> Namespace:
    """As `flags`, of the recipe gpt: modern blocks, heads of 128 features, windows, Muon."""
    recipe = {"block": "modern", "window_pattern": "SSSL", "rope_dtype": "bfloat16", "opt": "muon"}
    return flags(**{"model": "base", **recipe, "vocab_size": 50257, **given})


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def autocast(device: str, dtype: str) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == "float32" else torch.autocast(device, dtype=getattr(torch, dtype))


def seconds(work: Callable[[], object], device: str) -> float:
    synchronise(device)
    begin = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begin


def alternate(ways: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that a noisy machine disturbs all of them alike."""
    for work in ways.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(values) for name, values in times.items()}


def matmul(device: str, dtype: str, side: int = MATRIX) -> Callable[[], object]:
    """A product of square matrices; `matmul_rate` turns its seconds into operations a second."""
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    return lambda: a @ b


def matmul_rate(seconds_of_one: float, side: int = MATRIX) -> float:
    return 2 * side**3 / seconds_of_one


def training_step(
    args: Namespace, device: str, dtype: str, *, plain: bool
) -> tuple[Transformer, Callable[[], None]]:
    """A model, and one whole step of its training on random tokens: forward, backward, optimiser.

    plain: as published, with logits of the whole vocabulary in float32 (attention follows the flags).
    """
    model, forward_and_backward = micro_batch(args, device, dtype, plain=plain)
    optimizer = make_optimizer(model, args)

    def step() -> None:
        forward_and_backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


def micro_batch(
    args: Namespace, device: str, dtype: str, *, plain: bool
) -> tuple[Transformer, Callable[[], None]]:
    """As `training_step`, forward and backward alone."""
    torch.manual_seed(0)
    model = make_model_from_args(args).to(device)
    if args.fp8:
        fp8.convert(model, args.fp8_recipe)
    if args.compile:
        model.compile_blocks()
    idx, targets = (
        torch.randint(0, args.vocab_size, (args.batch_size, args.sequence_length), device=device)
        for _ in range(2)
    )

    def loss() -> Tensor:
        if not plain:
            return model(idx, targets=targets)["loss"]
        logits = model(idx, get_logits=True)["logits"]
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def forward_and_backward() -> None:
        with autocast(device, dtype):
            value = loss()
        value.backward()

    return model, forward_and_backward


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def peak_growth(work: Callable[[], object], device: str = "cpu") -> float:
    """Largest growth of memory while `work` runs, in MiB: of the GPU's, or of what is resident, sampled
    each millisecond.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # blocks that were freed before
    start, peak, done = resident_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident_mib() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return peak


def report(bench: str, device: str, **figures: Any) -> None:
    """Print the one line of JSON."""
    machine = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(json_text({"bench": bench, "machine": machine, "torch": torch.__version__, **figures}))
