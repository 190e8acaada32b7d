"""A whole training step against the plain mode: dense attention mask, eager, logits of the whole vocabulary
in float32.

    python bench/train_step.py [--n_embd 768] [--dtype bfloat16] [--compile 0] [--batch_size 8] [--rounds 7]
    python bench/train_step.py --recipe gpt [--n_layer 4] [--batch_size 8] [--sequence_length 1024]

Utilisation: useful floating-point operations (causal attention only) a second over the rate of a matrix
product that takes turns with the steps. Of the modern GPT a step has 2^19 tokens: as many micro-batches,
each timed by itself, and one update; operations are as its recipe counts them. The growth of memory is that
of a step of one micro-batch, gradients included.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
from argparse import Namespace
from collections.abc import Callable

import torch

from bench.common import (
    alternate,
    arguments,
    flags,
    flags_of_gpt,
    matmul,
    matmul_rate,
    micro_batch,
    peak_growth,
    report,
    training_step,
)
from models.macs import training_flops_per_token
from optim.optimizers import make_optimizer
from optim.setup import keep_freed_memory
from recipes.horizon import BASE_BATCH


def gpt(args: Namespace) -> None:
    """Of the recipe gpt."""
    shape = {
        "n_embd": args.n_embd,
        "n_head": args.n_head or max(1, args.n_embd // 128),
        "n_layer": args.n_layer or 4,
        "batch_size": args.batch_size,
        "sequence_length": args.sequence_length or 1024,
    }
    settings = flags_of_gpt(**shape, compile=bool(args.compile))
    model, fast = micro_batch(settings, args.device, args.dtype, plain=False)
    optimizer = make_optimizer(model, settings)

    def step() -> None:
        fast()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    memory = {"fast": peak_growth(step, args.device)}
    ways: dict[str, Callable[[], object]] = {
        "micro_batch": fast,
        "update": optimizer.step,
        "matmul": matmul(args.device, args.dtype),
    }
    times = alternate(ways, args.rounds, args.device)
    tokens = args.batch_size * settings.sequence_length
    micro_batches = BASE_BATCH / tokens
    seconds = micro_batches * times["micro_batch"] + times["update"]
    rate = matmul_rate(times["matmul"])
    flops = model.flops_per_token()
    optimizer.zero_grad(set_to_none=True)
    _, plain = training_step(
        flags_of_gpt(**shape, attention="reference"), args.device, args.dtype, plain=True
    )
    memory["plain"] = peak_growth(plain, args.device)
    report(
        "train_step",
        args.device,
        dtype=args.dtype,
        recipe="gpt",
        **shape,
        compile=bool(args.compile),
        seconds=times,
        tokens_per_second=BASE_BATCH / seconds,
        share_of_update=times["update"] / seconds,
        matmul_tflops=rate / 1e12,
        utilisation=flops * BASE_BATCH / seconds / rate,
        memory_mib=memory,
        memory_share=memory["fast"] / memory["plain"],
    )


def main() -> None:
    args = arguments(
        __doc__,
        recipe="cotformer",
        n_embd=768,
        n_head=0,
        n_layer=0,
        batch_size=8,
        sequence_length=0,
        compile=1,
        rounds=7,
        model="lncot",
    )
    if args.device == "cpu":
        keep_freed_memory()  # as main.py does
    if args.recipe == "gpt":
        gpt(args)
        return
    shape = {
        "n_embd": args.n_embd,
        "n_head": args.n_head or max(1, args.n_embd // 64),
        "n_layer": args.n_layer or 6,
        "model": args.model,
        "batch_size": args.batch_size,
        "sequence_length": args.sequence_length or 256,
    }
    model, fast = training_step(
        flags(**shape, compile=bool(args.compile)), args.device, args.dtype, plain=False
    )
    _, plain = training_step(flags(**shape, attention="reference"), args.device, args.dtype, plain=True)
    times = alternate(
        {"plain": plain, "fast": fast, "matmul": matmul(args.device, args.dtype)}, args.rounds, args.device
    )
    compiled = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
    fast()
    flops = training_flops_per_token(model.settings) * args.batch_size * shape["sequence_length"]
    rate = matmul_rate(times["matmul"])
    report(
        "train_step",
        args.device,
        dtype=args.dtype,
        **shape,
        compile=bool(args.compile),
        seconds=times,
        speedup=times["plain"] / times["fast"],
        tokens_per_second=args.batch_size * shape["sequence_length"] / times["fast"],
        matmul_tflops=rate / 1e12,
        utilisation={name: flops / times[name] / rate for name in ("plain", "fast")},
        graphs=compiled,
        recompiled_in_steady_state=torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) - compiled,
    )


if __name__ == "__main__":
    main()
