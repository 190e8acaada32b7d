"""The part of bench/gpu.sh that sets FP8 beside bfloat16: the loop's step of a modern GPT, compiled, on the
same samples. Prints a line of JSON for a row.

python -m bench.gpu.fp8 fp8 --device cuda
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from typing import Any

import torch
from torch import nn

from bench.common import flags_of_gpt, seconds
from bench.gpu.checks import RandomTokens
from bench.gpu.reference import fill
from bench.gpu.rows import FAIL, PASS, attempt, need, run_one, tell
from config.groups.model import FP8_RECIPES
from distributed.world import World
from models import fp8, make_model_from_args
from optim.objectives import NextToken
from optim.optimizers import make_optimizer
from optim.setup import need_compiler, need_fp8
from optim.step import OptimizerStep

STEPS = 20
WARM = 3  # steps that are not timed: they compile, and make the optimiser's state
LOSS_LIMIT = 0.05  # nats between the losses before the first update


def trained(given: Namespace, recipe: str | None) -> tuple[float, list[float]]:
    """Median seconds of a step, and the losses of all."""
    shape: dict[str, Any] = {"n_layer": 12, "n_embd": 768, "n_head": 6, "sequence_length": 2048}
    if given.tiny:
        shape = {"n_layer": 2, "n_embd": 128, "n_head": 1, "sequence_length": 32}
    args = flags_of_gpt(**shape, batch_size=1 if given.tiny else 16, acc_steps=1, dtype=given.dtype, lr=0.02)
    vars(args).update(embedding_lr=0.001, unembedding_lr=0.001, scalar_lr=0.001)
    if given.tiny:
        args.vocab_size = 512
    network = fill(make_model_from_args(args), 1)
    if recipe is not None:
        fp8.convert(network, recipe)
    if not given.tiny:
        need(need_compiler, torch.device(given.device))
        network.compile_blocks()
    objective: nn.Module = NextToken(network).to(given.device).train()
    optimizer = make_optimizer(network, args)
    step = OptimizerStep(args, World(torch.device(given.device)), objective, optimizer, RandomTokens(args))
    losses: list[float] = []
    times = [seconds(lambda: losses.append(float(step.take(0)[0])), given.device) for _ in range(STEPS)]
    return statistics.median(times[WARM:]), losses


def beside(given: Namespace) -> None:
    found: dict[str, tuple[float, list[float]]] = {}

    def way(recipe: str) -> None:
        need(need_fp8, given.dtype, torch.device(given.device))
        if not found:
            found[given.dtype] = trained(given, None)
        plain_seconds, plain_losses = found[given.dtype]
        took, losses = trained(given, recipe)
        tell(f"FP8 over {given.dtype}, {recipe}", value=plain_seconds / took, unit="times the speed")
        first, last = (abs(losses[step] - plain_losses[step]) for step in (0, -1))
        verdict = PASS if first <= LOSS_LIMIT else FAIL
        note = f"after {STEPS} steps on the same samples {last:.3f} (loss {losses[-1]:.3f})"
        target = f"at most {LOSS_LIMIT}"
        tell(
            f"loss off {given.dtype}'s, {recipe}", verdict, value=first, unit="nats", target=target, note=note
        )

    for recipe in FP8_RECIPES:
        attempt(f"FP8 over {given.dtype}, {recipe}", lambda recipe=recipe: way(recipe))  # type: ignore[misc]


if __name__ == "__main__":
    run_one(__doc__, {"fp8": beside})
