"""Times to the most recent common ancestor of haplotype pairs: the flags of the public code (kr-colab/cxt),
under its names and ours.

    python main.py coalescence --model broad --dataset-path data/datasets/processed --epochs 2
    python main.py coalescence --model broad_w200 --dataset-path DIR --epochs 2 --lr 3e-5 --checkpoint broad

docs/coalescence-training.md. The training pairs and --epochs give the number of steps.
"""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.checks import name_problems, notes_on_checkpoints, optimiser_problems, unused_by_optimiser
from config.flags import GROUPS
from config.groups.jobs import WHOLE
from config.hook_checks import hook_problems
from config.mixture import is_mixture
from config.recipe import Recipe, default_of
from config.schema import Flag
from config.values import Problem
from errors import UserError
from models.coalescence.settings import ALL, PRESETS, SCALES, TINY
from optim.coalescence import cache
from optim.reader import Record
from optim.tracked import Tracked
from recipes import gpus
from recipes.coalescence_flags import ADAPTER, DATA, HORIZON, NETWORK

if TYPE_CHECKING:
    from data.genomes.store import GenomeMeta
    from distributed.world import World
    from optim.progress import Parts

# its name of a setting -> ours; the names that are the same are not repeated
SPELLINGS = {
    "dataset-path": "dataset",
    "batch-size": "batch_size",
    "grad-accum": "acc_steps",
    "checkpoint": "init_from",
    "log-dir": "results_base_folder",
}
DEFAULTS: dict[str, Any] = {
    "iterations": None,
    "batch_size": 128,
    "acc_steps": 6,
    "lr": 3e-4,
    "min_lr": None,
    "warmup_steps": 10,
    "scheduler": "warmup_cos",
    "decayed": "matrices_embeddings",
}
# of the networks that a CPU can train
OF_TINY: dict[str, Any] = {"batch_size": 32, "acc_steps": 1, "lr": 1e-3, "decay_steps": None}
SELFTEST: dict[str, Any] = {
    "dataset": "selftest",
    "model": "tiny_narrow",
    "batch_size": 4,
    "acc_steps": 2,
    "iterations": 40,
    "eval_freq": 10,
    "eval_batches": 2,
    "log_freq": 1,
    "save_checkpoint_freq": 5,
}
TEXT_ALONE = ("layer_norms",)  # of the hooks
OTHER_FORMS: dict[str, dict[str, Any]] = {
    "iterations": {"help": "optimiser steps in all (None: those of --epochs)", "type": int},
    "batch_size": {"help": "pairs of one micro-batch on one process"},
    "min_lr": {"help": "rate that warmup_cos falls to (None: a tenth of --lr)"},
    "init_from": {
        "help": "begin with the weights of a checkpoint: a file, ours or the public code's; a name in its"
        f" cache (~/.cache/cxt/checkpoints, or ${cache.CACHE}); an experiment's folder or name. Fresh"
        " optimiser, any data. Read once; later jobs resume without it (None: random weights)"
    },
    "track": {
        "help": "keep the best checkpoint as best.pt, by a quantity of the evaluations during training:"
        " val_loss, val_pp, val_acc, mse or pearson_r (None: no best.pt)"
    },
}
QUANTITIES = dict.fromkeys(("val_loss", "val_pp", "mse"), "lower") | dict.fromkeys(
    ("val_acc", "pearson_r"), "higher"
)
EVALUATION = ("eval_freq", "eval_batches", "log_freq", "wandb", "wandb_project", "wandb_entity")


def own_groups() -> Mapping[str, Sequence[Flag]]:
    """This recipe's flags, and those of all recipes in the form that they have here."""
    groups: dict[str, Sequence[Flag]] = {
        "network": NETWORK,
        "pairs": DATA,
        "adapter": ADAPTER,
        "horizon": HORIZON,
    }
    for title in (
        "run",
        "optimiser",
        "evaluation",
        "hooks",
        "checkpoints",
        "when things go wrong",
        "distributed",
    ):
        flags = []
        for flag in GROUPS[title]:
            if (title != "evaluation" or flag.name in EVALUATION) and flag.name not in TEXT_ALONE:
                flags.append(replace(flag, **OTHER_FORMS.get(flag.name, {})))
        groups[title] = flags
    return groups


def follow(values: Mapping[str, Any]) -> dict[str, Any]:
    """Batch, rate and schedule of the networks that a CPU can train."""
    return dict(OF_TINY) if values["model"] in TINY else {}


def resolve(args: Namespace) -> list[Problem]:
    """The weights to begin with, and the steps, which follow from the pairs where these are there: before
    they are prepared, an experiment has as many steps as it was begun with.
    """
    if args.resume_adapter is not None:
        args.init_from = args.resume_adapter
    try:
        if args.init_from is not None and not os.path.exists(args.init_from):
            found = cache.cached(args.init_from)
            args.init_from = args.init_from if found is None else str(found)
    except UserError as error:
        return [Problem(str(error), "init_from", "resume_adapter")]
    problems = check(args)
    if problems:
        return problems
    from data.genomes.wanted import WantedGenomes

    try:
        meta = WantedGenomes.of(vars(args)).meta()
    except UserError as error:
        return [Problem(str(error), "dataset", "data_dir")]
    if meta is None:
        args.iterations = args.iterations or _steps_so_far_planned(args)
        return []
    problems = data_problems(args, meta)
    pairs = meta.splits["train"]["examples"]
    args.iterations = args.iterations or args.epochs * math.ceil(pairs / (args.batch_size * args.acc_steps))
    return problems


def _steps_so_far_planned(args: Namespace) -> int:
    """Of the experiment, where it was begun with these epochs; else one each."""
    from config.naming import experiment_folder

    recorded = Record(experiment_folder(args), problems=[]).flags or {}
    steps = recorded.get("iterations")
    return steps if isinstance(steps, int) and recorded.get("epochs") == args.epochs else args.epochs


def data_problems(args: Namespace, meta: GenomeMeta) -> list[Problem]:
    """Why a network cannot be trained on a prepared set."""
    problems = []
    preset, samples = PRESETS[args.model], args.adapter_samples
    there = f"the pairs of --dataset-path {args.dataset} are"
    if args.adapter and meta.n_samples != samples:
        line = f"--adapter-samples {samples}: {there} among {meta.n_samples} samples"
        problems.append(Problem(line, "adapter_samples", "dataset"))
    if not args.adapter and meta.n_samples != preset.n_samples:
        line = (
            f"--model {args.model} takes {preset.n_samples} samples, and {there} among {meta.n_samples}: give"
            f" --adapter --adapter-samples {meta.n_samples}, or other data"
        )
        problems.append(Problem(line, "model", "dataset"))
    if len(meta.multipliers) != SCALES:
        line = f"--dataset-path {args.dataset} has windows of {len(meta.multipliers)} scales, not of {SCALES}"
        problems.append(Problem(line, "dataset"))
    if preset.mask_singletons and meta.masked:
        line = (
            f"--dataset-path {args.dataset} has gaps (it was prepared with --bitmask), and --model"
            f" {args.model} is not told which: it would take them for regions without mutations"
        )
        problems.append(Problem(line, "model", "dataset"))
    if not preset.mask_singletons and not meta.masked:
        line = (
            f"--model {args.model} reads in bin 0 which share of a window is missing, and --dataset-path"
            f" {args.dataset} has no such shares there: prepare it with --bitmask, or give another --model"
        )
        problems.append(Problem(line, "model", "dataset"))
    for split in ("train", "test"):
        if not meta.splits[split]["examples"]:
            problems.append(Problem(f"--dataset-path {args.dataset}: no pairs in {split}/", "dataset"))
    return problems


def check(args: Namespace) -> list[Problem]:
    """A line for each combination of values that cannot work."""
    problems = []
    for name in ("dropout", "adapter_dropout"):
        if (getattr(args, name) or 0) >= 1:
            problems.append(Problem(f"--{name} must be below 1", name))
    if is_mixture(args.dataset) or not Path(args.dataset).name:
        problems.append(Problem(f"--dataset-path {args.dataset!r} is not one folder", "dataset"))
    if args.shard != WHOLE:
        line = f"--shard {args.shard} is for networks of text: coalescence trains on whole states"
        problems.append(Problem(line, "shard"))
    if args.track is not None:
        try:
            Tracked(args.track, {"": QUANTITIES}, args.eval_freq)
        except UserError as error:
            problems.append(Problem(str(error), "track", "eval_freq"))
    return [
        *problems,
        *_adapter_problems(args),
        *gpus.problems(args),
        *optimiser_problems(args),
        *name_problems(args),
        *hook_problems(args),
    ]


def _adapter_problems(args: Namespace) -> list[Problem]:
    problems = []
    preset = PRESETS[args.model]
    if args.resume_adapter is not None and not args.adapter:
        line = "--resume-adapter goes on with an adapter: give --adapter too"
        problems.append(Problem(line, "resume_adapter", "adapter"))
    if args.adapter and args.adapter_samples == preset.n_samples:
        line = (
            f"--adapter-samples {args.adapter_samples} is what --model {args.model} takes without an adapter:"
            " leave --adapter out"
        )
        problems.append(Problem(line, "adapter", "adapter_samples", "model"))
    if args.adapter and args.adapter_last_n > preset.n_layer:
        line = (
            f"--adapter_last_n {args.adapter_last_n} is more than the {preset.n_layer} blocks of {args.model}"
        )
        problems.append(Problem(line, "adapter_last_n", "model"))
    if args.adapter and args.unfreeze_strategy != ALL and args.opt == "muon":
        line = "--opt muon has no rates for what is trained below an adapter; give adamw"
        problems.append(Problem(line, "opt", "adapter"))
    return problems


def notes(args: Namespace) -> list[str]:
    """A line for each setting that was changed and has no effect, and for what may not be meant."""
    reasons = unused_by_optimiser(args)
    if args.scheduler != "warmup_cos":
        reasons["decay_steps"] = f" with --scheduler {args.scheduler}"
    if not args.adapter:
        reasons |= {flag.name: ": there is no --adapter" for flag in ADAPTER if flag.name != "adapter"}
    elif args.unfreeze_strategy == ALL:
        reasons |= dict.fromkeys(("adapter_last_n", "backbone_rate"), f" with --unfreeze_strategy {ALL}")
    told = [f"--{name} has no effect{why}" for name, why in reasons.items() if _is_given(args, name)]
    if args.adapter and args.init_from is None and args.unfreeze_strategy != ALL:
        told.append(
            "--adapter without --checkpoint or --resume-adapter: the network below it keeps random weights,"
            " but for its norms and last blocks"
        )
    return [*told, *_notes_on_windows(args), *gpus.notes(args), *notes_on_checkpoints(args)]


def _notes_on_windows(args: Namespace) -> list[str]:
    """A line where those of the pairs have another size than the network is for."""
    from data.genomes.wanted import WantedGenomes

    wanted = PRESETS[args.model].window_size
    with suppress(UserError):  # which is said where the pairs are needed
        meta = WantedGenomes.of(vars(args)).meta()
        if meta is not None and meta.window_size != wanted:
            there = f"--dataset-path {args.dataset} has windows of {meta.window_size} bp"
            return [f"{there}, and --model {args.model} is for windows of {wanted} bp"]
    return []


def _is_given(args: Namespace, name: str) -> bool:
    return bool(getattr(args, name) != default_of(vars(args), name))


def wanted(flags: Mapping[str, Any]) -> Any:
    from data.genomes.wanted import WantedGenomes

    return WantedGenomes.of(flags)


def make_up(args: Namespace, place: Path) -> None:
    """Pairs that are drawn at random, of the form that --model takes."""
    from data.genomes.features import SCALES
    from data.genomes.made_up import make_up
    from data.genomes.store import Layout

    preset = PRESETS[args.model]
    samples = args.adapter_samples if args.adapter else preset.n_samples
    length = preset.n_windows * preset.window_size
    layout = Layout(preset.window_size, length, samples, SCALES, not preset.mask_singletons)
    make_up(place / args.dataset, layout, {"train": 64, "test": 16}, args.data_seed)


def assemble(args: Namespace, world: World, folder: Path) -> Parts:
    from optim.coalescence.training import assemble

    return assemble(args, world, folder)


RECIPE = Recipe(
    name="coalescence",
    help="times to the common ancestors of haplotypes, from simulated genomes",
    groups=own_groups(),
    assemble=assemble,
    defaults=DEFAULTS,
    spellings=SPELLINGS,
    given_by={"init_from": "resume_adapter"},
    selftest=SELFTEST,
    follow=follow,
    resolve=resolve,
    check=check,
    notes=notes,
    wanted=wanted,
    begin=gpus.begin,
    make_up=make_up,
)
