"""The parts of a training on tokens, as the recipe of main.py puts them together, and the first lines of its
run.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from config.curriculum import LENGTH
from config.groups.jobs import FULLY_SHARDED
from config.groups.objective import DISTILLATION, EXAMPLES, MULTI_TOKEN
from config.packing import NONE
from config.recipe import flags_of
from data.batch import BatchSource
from data.curriculum import LengthCurriculum
from data.examples import ExampleSplits
from data.sizes import token_sizes
from data.text import TextData
from distributed.world import World
from errors import UserError
from models import fp8, make_model_from_args
from optim.core_metric import core_evaluation, wanted_tasks
from optim.dataset import describe_source, open_data, open_source
from optim.evaluation import HeldOut
from optim.first_lines import first_lines
from optim.hooks import Hook
from optim.objectives import NextToken
from optim.objectives.distillation import Distillation
from optim.objectives.multi_token import MultiTokenPrediction
from optim.objectives.teacher import check_teacher, find_teacher, load_teacher
from optim.progress import Parts, Work
from optim.reporting import log
from optim.samples import samples_of, wanted_prompts
from optim.setup import autocast_dtype, need_fp8, need_graphs, seed_everything
from optim.tuning import fine_tuning, open_examples_of


def assemble(args: Namespace, world: World, folder: Path) -> Parts:
    """What flags ask for: their dataset, and their network with fresh weights. Seeds all generators.

    Raises UserError.
    """
    if args.fp8:
        world.on_all(lambda: need_fp8(args.dtype, world.device))
    if args.cuda_graphs:
        world.on_all(lambda: need_graphs(world))
    # a wrong prompt or task is reported before data are prepared
    texts = world.on_all(lambda: wanted_prompts(args)) if args.sample_every else []
    tasks = world.on_all(lambda: wanted_tasks(args)) if args.core_metric_every else []
    data: TextData | ExampleSplits[Any]
    data = open_examples_of(args, world) if args.objective in EXAMPLES else open_data(args, world)
    seed_everything(args.seed, world.rank)
    network = make_model_from_args(args)
    if args.fp8:
        world.on_all(lambda: fp8.convert(network, args.fp8_recipe))
    hooks = _samples(args, world, texts, data.meta, network) if texts else []
    if tasks:
        hooks.append(world.on_all(lambda: core_evaluation(args, world, tasks, data.meta, network)))
    if isinstance(data, ExampleSplits):
        return fine_tuning(args, world, data, network, folder, hooks)
    return language_model(args, world, data, network, folder, hooks)


def _samples(
    args: Namespace, world: World, texts: Sequence[str], meta: Mapping[str, Any], network: Any
) -> list[Hook]:
    """The hook of samples. Where only a recipe's default asks for them, and they cannot be had: none, and a
    note. Raises UserError.
    """
    try:
        return [world.on_all(lambda: samples_of(args, world, texts, meta, network))]
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
    if args.shard != FULLY_SHARDED or world.size == 1:  # its weights go there in shards
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
        work_at=_work(source, objective),
        describe=lambda schedule: [
            *_describe(args, world, data, source, network, folder, schedule),
            *note_on_vocabulary(args.vocab_size, data.meta),
            *objective.describe(),
        ],
    )


def note_on_vocabulary(vocab_size: int, meta: Mapping[str, Any]) -> list[str]:
    """A line where most tokens of a network never occur in data that meta.json describes so."""
    known = meta.get("vocab_size")
    if not isinstance(known, int) or 2 * known >= vocab_size:
        return []
    return [f"note: the data have {known:,} tokens, the model {vocab_size:,}: --vocab_size {known} would do"]


def _objective(args: Namespace, world: World, data: TextData, network: Any, folder: Path) -> Any:
    """What --objective asks for. Raises UserError for a teacher that cannot be used."""
    if args.objective == MULTI_TOKEN:
        return MultiTokenPrediction(network, args.mtp_heads, args.mtp_weight)
    if args.objective == DISTILLATION:
        path = world.on_main(lambda: find_teacher(args.teacher, folder, args.results_base_folder))
        teacher = world.on_all(lambda: load_teacher(args.teacher, path))
        datasets = [(splits.folder, splits.meta) for splits in data.parts.values()]
        world.on_all(lambda: check_teacher(teacher, args, datasets))
        dtype = teacher.dtype(args.teacher_dtype, autocast_dtype(args.dtype, world.device))
        if args.compile:
            teacher.network.compile_blocks()
        return Distillation(
            network, teacher.network, args.distill_temperature, args.distill_alpha, dtype, teacher.file
        )
    return NextToken(network)


def _work(source: BatchSource, objective: Any) -> Callable[[int], Work] | None:
    """As Parts.work_at has it, of sequences that grow."""
    if not isinstance(source, LengthCurriculum):
        return None
    of_length = {}
    for stage in source.stages:
        of_length[stage.length] = Work(stage.length, objective.flops_per_token(stage.length))
    return lambda step: of_length[source.length_of(step)]


def _describe(
    args: Namespace,
    world: World,
    data: TextData,
    source: BatchSource,
    network: Any,
    folder: Path,
    schedule: str,
) -> list[str]:
    """First lines of a run. schedule: in words."""
    epochs, tokens = "", str(args.sequence_length)
    if args.curriculum == LENGTH:
        tokens = f"{args.curriculum_min_length} to {tokens}"
    elif args.packing == NONE and not data.is_mixture:
        passes = args.iterations * args.batch_size * args.acc_steps / data.first.train.n_windows
        epochs = f"; {passes:.2f} epochs in {args.iterations} steps"
    reads = f"sequences of {tokens} tokens", epochs
    return first_lines(args, world, network, folder, describe_source(args, data, source), reads, schedule)
