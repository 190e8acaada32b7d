"""The parts of bench/gpu.sh that measure. Each prints a line of JSON for a row.

python -m bench.gpu.figures speed --device cuda
python -m bench.gpu.figures micro_batch --device cuda
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from bench.common import flags, matmul, matmul_rate, seconds, training_step
from bench.gpu.rows import SKIPPED, attempt, judged, run_one, tell
from errors import UserError
from models.macs import training_flops_per_token
from models.settings import ModelSettings
from optim.setup import need_compiler

ROUNDS = 5
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices whose product sets the rate
GPU_GIB = 24  # of the smaller card whose micro-batch is looked for
LARGEST_MICRO_BATCH = 128


def paper(tiny: bool, **more: Any) -> Namespace:
    """Flags of the paper's LN-CoTFormer of 24 layers and 5 passes, n_embd 768, T 256."""
    shape: dict[str, Any] = {"n_layer": 24, "n_embd": 768, "n_head": 12, "batch_size": 32}
    if tiny:
        shape = {
            "n_layer": 4,
            "n_embd": 64,
            "n_head": 1,
            "batch_size": 2,
            "sequence_length": 64,
            "vocab_size": 512,
        }
    return flags(**{**shape, **more})


def verdict_of(is_met: bool) -> str | None:
    """Of a target, on this card."""
    return judged(is_met, torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def median_seconds(work: Callable[[], object], device: str) -> float:
    for _ in range(2):  # allocates, and makes the optimiser's state
        work()
    return statistics.median(seconds(work, device) for _ in range(ROUNDS))


def largest_that_runs(args: Namespace, run: Callable[[Namespace], float]) -> tuple[float, int]:
    """What `run` returns, and the micro-batch, which is halved until it fits."""
    while True:
        try:
            return run(args), args.batch_size
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if args.batch_size == 1:
                raise
            args.batch_size //= 2


def speed(given: Namespace) -> None:
    """Tokens a second of whole training steps, against reference attention and the rate of a product."""
    device, dtype, tiny = given.device, given.dtype, given.tiny
    tokens_per_second: dict[str, float] = {}
    rates: list[float] = []

    def rate() -> None:
        side = MATMUL_SIDE[device]
        rates.append(matmul_rate(median_seconds(matmul(device, dtype, side), device), side))
        note = f"{side} x {side}"
        tell(f"matrix product, {dtype}", value=rates[0] / 1e12, unit="TFLOP/s", note=note)

    def way(name: str, settings: dict[str, Any]) -> None:
        if settings.get("compile"):
            need_compiler(torch.device(device))
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

        def run(args: Namespace) -> float:
            _, step = training_step(args, device, dtype, plain=False)
            return median_seconds(step, device)

        args = paper(tiny, **settings)
        took, micro_batch = largest_that_runs(args, run)
        found = micro_batch * args.sequence_length / took
        tokens_per_second[name] = found
        tell(f"training, {name}", value=found, unit="tokens/s", note=f"micro-batch {micro_batch}")
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
            tell(f"peak memory, {name}", value=peak, unit="GiB", note=f"micro-batch {micro_batch}")
            torch.cuda.empty_cache()
        if rates:
            flops = training_flops_per_token(ModelSettings.from_args(args))
            share = found * flops / rates[0]
            is_target = name == "compiled"
            tell(
                f"share of the matrix product's rate, {name}",
                verdict_of(share >= 0.45) if is_target else None,
                value=share,
                target="at least 0.45" if is_target else "",
            )

    def ratio() -> None:
        if {"compiled", "reference attention"} - tokens_per_second.keys():
            raise UserError("one of the two was not measured")
        found = tokens_per_second["compiled"] / tokens_per_second["reference attention"]
        verdict = verdict_of(found >= 3)
        tell("compiled over reference attention", verdict, value=found, unit="times", target="at least 3")

    attempt("matrix product", rate)
    ways: dict[str, dict[str, Any]] = {
        "eager": {},
        "compiled": {"compile": True},
        "reference attention": {"attention": "reference"},
    }
    for name, settings in ways.items():
        attempt(f"training, {name}", lambda name=name, settings=settings: way(name, settings))  # type: ignore[misc]
    attempt("compiled over reference attention", ratio)


def micro_batch(given: Namespace) -> None:
    """The largest micro-batch that trains in the memory of a smaller card."""
    ways: dict[str, dict[str, Any]] = {
        "fast": {},
        "activation checkpointing of passes": {"activation_checkpointing": "pass"},
    }

    def one(name: str, settings: dict[str, Any]) -> None:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        limit = min(GPU_GIB, total)
        torch.cuda.set_per_process_memory_fraction(limit / total)
        fits = largest(lambda size: trains(paper(given.tiny, batch_size=size, **settings), given))
        verdict = verdict_of(fits >= 32) if name == "fast" else None
        tell(
            f"micro-batch in {limit:.0f} GiB, {name}",
            verdict,
            value=fits,
            unit="sequences",
            target="at least 32" if name == "fast" else "",
            note=f"{LARGEST_MICRO_BATCH} is the largest tried" if fits >= LARGEST_MICRO_BATCH else "",
        )

    for name, settings in ways.items():
        if given.device == "cpu":
            tell(f"micro-batch in {GPU_GIB} GiB, {name}", SKIPPED, note="only CUDA's memory can be limited")
        else:
            attempt(f"micro-batch in {GPU_GIB} GiB, {name}", lambda n=name, s=settings: one(n, s))  # type: ignore[misc]


def trains(args: Namespace, given: Namespace) -> bool:
    """Whether two steps of a training have room."""
    try:
        _, step = training_step(args, given.device, given.dtype, plain=False)
        step()
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number, up to a limit, that fits, in steps of an eighth; 0 where none does."""
    found, size = 0, 8
    while size <= LARGEST_MICRO_BATCH and fits(size):
        found, size = size, size * 2
    low, high = found, min(size, LARGEST_MICRO_BATCH)
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


PARTS: dict[str, Callable[[Namespace], None]] = {"speed": speed, "micro_batch": micro_batch}


if __name__ == "__main__":
    run_one(__doc__, PARTS)
