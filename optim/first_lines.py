"""The first lines of a run of main.py: what is trained, where, and on what."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from config.groups.jobs import FULLY_SHARDED, WHOLE
from distributed.world import World
from models import fp8
from optim.setup import autocast_dtype, autocaster


def first_lines(
    args: Namespace,
    world: World,
    network: Any,
    folder: Path,
    data: Sequence[str],
    reads: tuple[str, str],
    schedule: str,
) -> list[str]:
    """data: lines about what is read; reads: what a sample is, in the plural, and what is to be said of all
    that are read; schedule: in words.
    """
    with autocaster(args.dtype, world.device)():
        on_attention = network.planner(args.batch_size).describe_slow(world.device)
    where = f"CPU, {torch.get_num_threads()} threads"
    if world.device.type == "cuda":
        where = torch.cuda.get_device_name(world.device)
    dtype = str(autocast_dtype(args.dtype, world.device)).removeprefix("torch.")
    samples, (what, more) = args.batch_size * args.acc_steps, reads
    lines = [
        f"experiment: {folder}",
        f"model: {network.describe()}",
        f"device: {world.size} x {where}, {dtype}",
        *data,
        (
            f"effective batch: {samples} {what} ({args.batch_size} x"
            f" {args.acc_steps // world.size} on each of {world.size} processes){more}"
        ),
        schedule,
    ]
    if args.shard != WHOLE:
        lines.append(_shards(args.shard, world))
    if args.fp8:
        lines.append(fp8.in_words(network, args.fp8_recipe))
    return [*lines, *on_attention]


def _shards(shard: str, world: World) -> str:
    """What each process keeps of a training in shards."""
    if world.size == 1:
        return f"note: --shard {shard} has no effect on one process"
    what = "weights, gradients and optimiser" if shard == FULLY_SHARDED else "the optimiser's state"
    return f"shards: each process keeps its part of {what}"
