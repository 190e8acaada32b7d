"""The parts of a training on tokens, as the recipe of main.py puts them together, and the first lines of its
run.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from config.groups.objective import DISTILLATION, MULTI_TOKEN
from config.packing import NONE
from config.recipe import flags_of
from data.sizes import token_sizes
from data.text import TextData
from distributed.world import World
from errors import UserError
from models import fp8, make_model_from_args
from optim.core_metric import core_evaluation, wanted_tasks
from optim.dataset import open_data, open_source
from optim.evaluation import HeldOut
from optim.hooks import Hook
from optim.objectives import NextToken
from optim.objectives.distillation import Distillation
from optim.objectives.multi_token import MultiTokenPrediction
from optim.objectives.teacher import check_teacher, find_teacher, load_teacher
from optim.progress import Parts
from optim.reporting import log
from optim.samples import samples_of, wanted_prompts
from optim.setup import autocast_dtype, autocaster, need_fp8, seed_everything


def assemble(args: Namespace, world: World, folder: Path) -> Parts:
    """What flags ask for: their dataset, and their network with fresh weights. Seeds all generators.

    Raises UserError.
    """
    if args.fp8:
        world.on_all(lambda: need_fp8(args.dtype, world.device))
    # a wrong prompt or task is reported before data are prepared
    texts = world.on_all(lambda: wanted_prompts(args)) if args.sample_every else []
    tasks = world.on_all(lambda: wanted_tasks(args)) if args.core_metric_every else []
    data = open_data(args, world)
    seed_everything(args.seed, world.rank)
    network = make_model_from_args(args)
    if args.fp8:
        world.on_all(lambda: fp8.convert(network, args.fp8_recipe))
    hooks = _samples(args, world, texts, data, network) if texts else []
    if tasks:
        hooks.append(world.on_all(lambda: core_evaluation(args, world, tasks, data, network)))
    return language_model(args, world, data, network, folder, hooks)


def _samples(args: Namespace, world: World, texts: Sequence[str], data: TextData, network: Any) -> list[Hook]:
    """The hook of samples. Where only a recipe's default asks for them, and they cannot be had: none, and a
    note. Raises UserError.
    """
    try:
        return [world.on_all(lambda: samples_of(args, world, texts, data, network))]
    except UserError as error:
        default = flags_of(vars(args))["sample_every"].default
        if args.sample_every != default or args.sample_prompts is not None:
            raise
        log.info(f"note: no samples: {str(error).splitlines()[0]}")
    return []


def language_model(
    args: Namespace, world: World, data: TextData, network: Any, folder: Path, hooks: Sequence[Hook] = ()
) -> Parts:
    """Training of a network on the training splits by --objective, evaluated on each validation split.

    folder: of the experiment, where an evaluation that is cut short keeps its sums.
    """
    source = open_source(args, world, data, folder)
    identities = data.identities or {"": world.on_main(source.identity)}
    network = network.to(world.device)
    sizes = world.on_main(partial(token_sizes, data.meta, args.vocab_size))
    evaluations = []
    for name, splits in data.parts.items():
        evaluations.append(HeldOut(args, world, network, splits.val, folder, identities[name], name, sizes))
    objective = _objective(args, world, data, network, folder)
    return Parts(
        objective,
        source,
        evaluations=evaluations,
        hooks=hooks,
        items="tokens",
        items_per_sample=args.sequence_length,
        flops_per_item=objective.flops_per_token(),
        describe=lambda schedule: [
            *describe(args, world, data, network, folder, schedule),
            *objective.describe(),
        ],
    )


def _objective(args: Namespace, world: World, data: TextData, network: Any, folder: Path) -> Any:
    """What --objective asks for. Raises UserError for a teacher that cannot be used."""
    if args.objective == MULTI_TOKEN:
        return MultiTokenPrediction(network, args.mtp_heads, args.mtp_weight)
    if args.objective == DISTILLATION:
        path = world.on_main(lambda: find_teacher(args.teacher, folder))
        teacher = world.on_all(lambda: load_teacher(args.teacher, path))
        world.on_all(lambda: check_teacher(teacher, args, data))
        dtype = teacher.dtype(args.teacher_dtype, autocast_dtype(args.dtype, world.device))
        if args.compile:
            teacher.network.compile_blocks()
        return Distillation(
            network, teacher.network, args.distill_temperature, args.distill_alpha, dtype, teacher.file
        )
    return NextToken(network)


def describe(
    args: Namespace, world: World, data: TextData, network: Any, folder: Path, schedule: str
) -> list[str]:
    """First lines of a run. schedule: in words."""
    settings = network.settings
    with autocaster(args.dtype, world.device)():
        could_be_fast = settings.attention == "fast" and settings.dropout == 0
        is_slow = could_be_fast and not network.is_fast(world.device, alike=True)
    where = f"CPU, {torch.get_num_threads()} threads"
    if world.device.type == "cuda":
        where = torch.cuda.get_device_name(world.device)
    dtype = str(autocast_dtype(args.dtype, world.device)).removeprefix("torch.")
    samples = args.batch_size * args.acc_steps
    epochs, in_windows = "", args.packing == NONE
    if in_windows and not data.is_mixture:
        passes = args.iterations * samples / data.first.train.n_windows
        epochs = f"; {passes:.2f} epochs in {args.iterations} steps"
    lines = [
        f"experiment: {folder}",
        f"model: {network.describe()}",
        f"device: {world.size} x {where}, {dtype}",
        *data.describe(samples * args.iterations, in_windows),
        (
            f"effective batch: {samples} sequences of {args.sequence_length} tokens ({args.batch_size} x"
            f" {args.acc_steps // world.size} on each of {world.size} processes){epochs}"
        ),
        schedule,
    ]
    if args.fp8:
        lines.append(fp8.in_words(network, args.fp8_recipe))
    if is_slow:
        lines.append(
            "note: this device's flash attention cannot be used pass by pass; attention is the reference"
        )
    return lines
