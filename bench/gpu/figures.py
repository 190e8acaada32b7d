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
from bench.gpu.rows import SKIPPED, Lacking, attempt, judged, need, run_one, tell
from models.macs import training_flops_per_token
from models.settings import ModelSettings
from optim.setup import need_compiler

ROUNDS = 5
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices whose product sets the rate
# of a card of 24 GB, whose micro-batch is looked for, less what CUDA's context takes beside torch's memory
SMALLER_CARD_BYTES = 24e9 - 2**29
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


def verdict_of(is_met: bool, device: str) -> str | None:
    """Of a target, on the device that was measured."""
    return judged(is_met, torch.cuda.get_device_name() if device == "cuda" else None)


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


def rate_of_products(device: str, dtype: str) -> float:
    """FLOP/s, which are told."""
    side = MATMUL_SIDE[device]
    rate = matmul_rate(median_seconds(matmul(device, dtype, side), device), side)
    tell("matrix product", value=rate / 1e12, unit="TFLOP/s", note=f"{side} x {side}, {dtype}")
    return rate


def tell_rate(name: str, per_second: float, note: str, device: str, unit: str = "tokens/s") -> None:
    """Of a training, and on CUDA its peak memory since that was last forgotten."""
    tell(f"training, {name}", value=per_second, unit=unit, note=note)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        tell(f"peak memory, {name}", value=peak, unit="GiB", note=note)


def tell_share(of: str, name: str, share: float, device: str, at_least: float | None = None) -> None:
    """Of a rate. at_least: the target."""
    verdict, target = None, ""
    if at_least is not None:
        verdict, target = verdict_of(share >= at_least, device), f"at least {at_least:g}"
    tell(f"share of {of}, {name}", verdict, value=share, unit="of the rate", target=target)


def speed(given: Namespace) -> None:
    """Tokens a second of whole training steps, against reference attention and the rate of a product."""
    device, dtype, tiny = given.device, given.dtype, given.tiny
    tokens_per_second: dict[str, float] = {}
    rates: list[float] = []

    def way(name: str, settings: dict[str, Any]) -> None:
        if settings.get("compile"):
            need(need_compiler, torch.device(device))

        def run(args: Namespace) -> float:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            _, step = training_step(args, device, dtype, plain=False)
            return median_seconds(step, device)

        args = paper(tiny, **settings)
        took, micro_batch = largest_that_runs(args, run)
        found = micro_batch * args.sequence_length / took
        tokens_per_second[name] = found
        tell_rate(name, found, f"micro-batch {micro_batch}", device)
        torch.cuda.empty_cache()
        if rates:
            flops = found * training_flops_per_token(ModelSettings.from_args(args))
            target = 0.45 if name == "compiled" else None
            tell_share("the matrix product's rate", name, flops / rates[0], device, target)

    def ratio() -> None:
        if {"eager", "reference attention"} - tokens_per_second.keys():
            raise Lacking("one of the two was not measured")
        found = tokens_per_second["eager"] / tokens_per_second["reference attention"]
        verdict = verdict_of(found >= 3, device)
        tell("fast over reference attention", verdict, value=found, unit="times", target="at least 3")

    attempt("matrix product", lambda: rates.append(rate_of_products(device, dtype)))
    ways: dict[str, dict[str, Any]] = {
        "eager": {},
        "reference attention": {"attention": "reference"},
        "compiled": {"compile": True},
    }
    for name, settings in ways.items():
        attempt(f"training, {name}", lambda name=name, settings=settings: way(name, settings))  # type: ignore[misc]
        if name == "reference attention":  # like with like: neither is compiled
            attempt("fast over reference attention", ratio)


def micro_batch(given: Namespace) -> None:
    """The largest micro-batch that trains in the memory of a smaller card; the better of what is eager and
    what is compiled is judged.
    """
    ways: dict[str, dict[str, Any]] = {
        "eager": {},
        "eager, activation checkpointing of passes": {"activation_checkpointing": "pass"},
        "compiled": {"compile": True},
    }
    found: dict[str, int] = {}

    def one(name: str, settings: dict[str, Any]) -> None:
        if settings.get("compile"):
            need(need_compiler, torch.device(given.device))
        total = torch.cuda.get_device_properties(0).total_memory
        limit = min(SMALLER_CARD_BYTES, total)
        torch.cuda.set_per_process_memory_fraction(limit / total)
        fits = largest(lambda size: trains(paper(given.tiny, batch_size=size, **settings), given))
        found[name] = fits
        most = f", {LARGEST_MICRO_BATCH} is the largest tried" if fits >= LARGEST_MICRO_BATCH else ""
        note = f"{limit / 2**30:.1f} GiB for torch{most}"
        tell(title(name), value=fits, unit="sequences", note=note)

    def better() -> None:
        tried = [name for name in ("eager", "compiled") if name in found]
        if not tried:
            raise Lacking("neither eager nor compiled was measured")
        best = max(tried, key=found.__getitem__)
        verdict = verdict_of(found[best] >= 32, given.device)
        note = f"{best}, of {' and '.join(tried)}"
        tell(judged_row, verdict, value=found[best], unit="sequences", target="at least 32", note=note)

    def title(name: str) -> str:
        return f"micro-batch in 24 GB, {name}"

    judged_row = title("without activation checkpointing")
    works = {title(name): lambda n=name, s=settings: one(n, s) for name, settings in ways.items()}
    for name, work in {**works, judged_row: better}.items():
        if given.device == "cpu":
            tell(name, SKIPPED, note="only CUDA's memory can be limited")
        else:
            attempt(name, work)


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
