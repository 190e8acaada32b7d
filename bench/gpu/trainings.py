"""The parts of bench/gpu.sh that measure whole trainings as main.py makes them, beside those of the
paper: the modern GPT of depth 12, grpo with its rollouts, and coalescence times. Each prints a line of
JSON for a row.

python -m bench.gpu.trainings gpt --device cuda
"""

from __future__ import annotations

import gc
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.common import seconds
from bench.gpu.figures import median_seconds, rate_of_products, tell_rate, tell_share
from bench.gpu.rows import SKIPPED, attempt, need, run_one, tell
from bench.gpu.systems import BY_NAME, TEXT, System, Workshop, workshop
from models.footprint import Training, footprint, largest_micro_batch
from models.settings import ModelSettings
from optim.reporting import peak_flops
from optim.setup import need_compiler, need_fp8
from optim.training import Trainer

# the recipe's own flags at this depth, but for --device-batch-size, which is as large as fits
GPT = System("gpt", "gpt --depth 12 --max-seq-len 2048 --dataset tokens")
TINY_GPT = "--depth 2 --head-dim 16 --max-seq-len 64 --total-batch-size 512 --vocab_size 512"
LARGEST_MICRO_BATCH = 128  # a divisor of the sequences of a step
FILLED = 0.9  # share of the memory that the formula may ask for
ROLLOUTS = f"{TEXT} --n_layer 12 --n_embd 768 --n_head 12 --sequence_length 192"
MANY = "--completion_tokens 128 --group_size 8 --batch_size 16 --acc_steps 1"


def forget() -> None:
    """What is gone no longer takes memory, nor counts for the peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_seconds(trainer: Trainer, device: str) -> float:
    """Median of whole steps, each on samples of its own."""
    numbers = iter(range(10**9))
    return median_seconds(lambda: trainer.steps.take(next(numbers)), device)


def samples_of_step(args: Namespace) -> int:
    return int(args.batch_size * args.acc_steps)


def memory_of(args: Namespace, device: str) -> Training:
    """What the formula of memory asks of a training, beside its model."""
    dtype = "bfloat16" if args.dtype == "auto" else args.dtype
    many = args.acc_steps or 2
    return Training(args.batch_size, dtype, args.opt, micro_batches=many, cuda=device == "cuda")


def gpt(given: Namespace) -> None:
    """The modern GPT's useful floating-point operations over the maker's peak and over a product's rate."""
    device, rates = given.device, []

    def fits(shop: Workshop) -> int:
        """The largest micro-batch by the formula, a power of two."""
        if device == "cpu":
            return 2
        args = shop.flags(GPT, "--device-batch-size 1")
        limit = int(FILLED * torch.cuda.get_device_properties(0).total_memory)
        most = largest_micro_batch(ModelSettings.from_args(args), memory_of(args, device), limit)
        return int(min(LARGEST_MICRO_BATCH, 2 ** (most.bit_length() - 1)))

    def measured(shop: Workshop, flags: str) -> tuple[Namespace, float, float]:
        """Flags, seconds of a step, and its floating-point operations."""
        size = fits(shop)
        while True:
            try:
                forget()
                trainer = shop.trainer(GPT, f"{flags} --device-batch-size {size}")
                took, work = step_seconds(trainer, device), trainer.parts.work(0)
                return trainer.args, took, samples_of_step(trainer.args) * work.items * work.flops_per_item
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2

    def way(shop: Workshop, name: str, flags: str) -> None:
        if "--compile" in flags:
            need(need_compiler, torch.device(device))
        if "--fp8" in flags:
            need(need_fp8, given.dtype, torch.device(device))
        args, took, flops = measured(shop, flags)
        note = f"micro-batch {args.batch_size}, {took:.3g} s a step"
        tell_rate(name, samples_of_step(args) * args.sequence_length / took, note, device)
        target = 0.5 if name == "modern GPT, compiled" else None
        if rates:
            tell_share("the matrix product's rate", name, flops / took / rates[0], device, target)
        peak = peak_flops(torch.device(device))
        if peak is not None:
            tell_share("the peak that the maker states", name, flops / took / peak, device, target)
        if device == "cuda":
            formula = footprint(ModelSettings.from_args(args), memory_of(args, device)).peak
            ratio = torch.cuda.max_memory_allocated() / formula
            tell(f"peak memory over the formula's, {name}", value=ratio, unit="times")

    attempt("matrix product", lambda: rates.append(rate_of_products(device, given.dtype)))
    ways = {"compiled": "--compile", "FP8, compiled": "--compile --fp8", "eager": ""}
    with workshop(given, "--sample-every -1", TINY_GPT if given.tiny else " ") as shop:
        for name, flags in ways.items():
            row = f"training, modern GPT, {name}"
            if given.tiny and flags:
                tell(row, SKIPPED, note="a CPU's compiler takes its time; `compiled gpt` tries it")
            else:
                attempt(row, partial(way, shop, f"modern GPT, {name}", flags))


def grpo(given: Namespace) -> None:
    """Drawn tokens a second of the rollouts, and seconds of a whole step."""
    device = given.device

    def work() -> None:
        with workshop(given, shape="" if given.tiny else ROLLOUTS) as shop:
            trainer = shop.trainer(BY_NAME["grpo"], "" if given.tiny else MANY)
        objective: Any = trainer.parts.objective
        draw, took, tokens = objective.rollouts.of, [], []

        def drawn(*known: Any) -> Any:
            found = []
            took.append(seconds(lambda: found.append(draw(*known)), device))
            tokens.append(int(found[0].lengths.sum()))
            return found[0]

        objective.rollouts.of = drawn
        forget()
        step = step_seconds(trainer, device)
        completions = samples_of_step(trainer.args) * trainer.args.group_size
        note = f"{completions} completions a step"
        tell("rollouts", value=sum(tokens) / sum(took), unit="tokens/s", note=note)
        tell("step of grpo", value=step, unit="s", note=note)
        share = sum(took) / len(took) * trainer.args.acc_steps / step
        tell("share of the rollouts of a step", value=share, unit="of the time")

    attempt("rollouts", work)


def coalescence(given: Namespace) -> None:
    """Windows a second of a training of coalescence times."""
    device = given.device

    def work() -> None:
        with workshop(given) as shop:
            more = "" if given.tiny else "--model narrow --dataset many --batch_size 64 --acc_steps 1"
            trainer = shop.trainer(BY_NAME["coalescence"], more)
            forget()
            took = step_seconds(trainer, device)
        items = samples_of_step(trainer.args) * trainer.parts.items_per_sample
        note = f"{trainer.args.model}, micro-batch {trainer.args.batch_size}"
        tell_rate("coalescence", items / took, note, device, "windows/s")

    attempt("training, coalescence", work)


PARTS: dict[str, Callable[[Namespace], None]] = {"gpt": gpt, "grpo": grpo, "coalescence": coalescence}


if __name__ == "__main__":
    run_one(__doc__, PARTS)
