"""Base training of a modern GPT: the flags of the public code (karpathy/nanochat), under its names and ours.

    python main.py gpt --depth 12
    python main.py gpt --config recipes/presets/gpt_cpu.json

One flag sizes it all: width, heads, batch, number of steps, rates and weight decay follow from --depth
(recipes/horizon.py), where they are not given.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.checks import batch_sizes_that_fit
from config.curriculum import LENGTH
from config.flags import GROUPS
from config.old_flags import OLD_FLAGS
from config.recipe import Recipe
from config.schema import PLACE, SCHEDULE, Flag
from config.values import Problem
from errors import UserError
from models.settings import ModelSettings
from recipes import cotformer
from recipes.horizon import Horizon, horizon, width_and_heads

if TYPE_CHECKING:
    from distributed.world import World
    from optim.progress import Parts

# its name of a setting -> ours
SPELLINGS = {
    "device-type": "device",
    "fp8-recipe": "fp8_recipe",
    "depth": "n_layer",
    "max-seq-len": "sequence_length",
    "window-pattern": "window_pattern",
    "num-iterations": "iterations",
    "device-batch-size": "batch_size",
    "embedding-lr": "embedding_lr",
    "unembedding-lr": "unembedding_lr",
    "weight-decay": "weight_decay",
    "matrix-lr": "lr",
    "scalar-lr": "scalar_lr",
    "adam-beta1": "beta1",
    "adam-beta2": "beta2",
    "warmup-ratio": "warmup_ratio",
    "warmdown-ratio": "warmdown_ratio",
    "final-lr-frac": "final_lr_frac",
    "resume-from-step": "use_pretrained",
    "eval-every": "eval_freq",
    "sample-every": "sample_every",
    "core-metric-every": "core_metric_every",
    "core-metric-max-per-task": "core_metric_max_per_task",
    "save-every": "save_checkpoint_freq",
    "model-tag": "exp_name",
}
DEFAULTS: dict[str, Any] = {
    "block": "modern",
    "rope_dtype": "bfloat16",
    "window_pattern": "SSSL",
    "n_layer": 20,
    "n_embd": None,
    "n_head": None,
    "sequence_length": 2048,
    "vocab_size": 50257,
    "dataset": "owt2",
    "seed": 42,
    "batch_size": 32,
    "acc_steps": None,
    "iterations": None,
    "opt": "muon",
    "lr": 0.02,
    "embedding_lr": 0.3,
    "unembedding_lr": 0.004,
    "scalar_lr": 0.5,
    "weight_decay": 0.2,
    "beta1": 0.8,
    "beta2": 0.95,
    "scheduler": "trapezoid",
    "decay_schedule": "linear",
    "eval_freq": 250,
    "eval_batches": None,
    "sample_every": 2000,
}
SELFTEST: dict[str, Any] = {
    "dataset": "selftest",
    "vocab_size": 256,
    "n_layer": 4,
    "aspect_ratio": 16,
    "head_dim": 16,
    "sequence_length": 64,
    "batch_size": 4,
    "total_batch_size": 1024,
    "iterations": 60,
    "eval_freq": 10,
    "eval_batches": 4,
    "log_freq": 1,
    "save_checkpoint_freq": 7,
}
NO_WANDB = "dummy"


def disabled_is_none(text: str) -> int | None:
    """A whole number; None for -1, which disables."""
    number = int(text)
    return None if number == -1 else number


def disabled_is_zero(text: str) -> int:
    """A whole number; 0 for -1, which disables."""
    return disabled_is_none(text) or 0


def checkpoint_of_step(text: str) -> str:
    """Of --resume-from-step, whose -1 and numbers of steps stand for our names of checkpoints."""
    if text == "-1":
        return "auto"
    return f"ckpt_{int(text)}.pt" if text.isdecimal() else text


def device_type(text: str) -> str:
    return text or "auto"


# flags that take another form here: name -> what differs
OTHER_FORMS: dict[str, dict[str, Any]] = {
    "device": {"type": device_type},
    "n_layer": {"high": 1024},
    "iterations": {
        "type": disabled_is_none,
        "help": "optimiser steps in all (None or -1: as many as --target-flops or"
        " --target-param-data-ratio ask for)",
    },
    "acc_steps": {
        "help": "micro-batches of one step, over all processes (None: --total-batch-size in micro-batches)"
    },
    "n_embd": {"help": "model width (None: depth x --aspect-ratio, rounded up to whole heads)"},
    "n_head": {"help": "attention heads (None: n_embd / --head-dim)"},
    "eval_freq": {"type": disabled_is_zero, "help": "evaluate every N steps; 0 or -1: only at the end"},
    "eval_batches": {
        "help": "batches of an evaluation during training; 0 = the whole split (None: those of --eval-tokens)"
    },
    "sample_every": {
        "type": disabled_is_zero,
        "help": "continue prompts every N steps, in the log, metrics.jsonl and Weights & Biases; 0 or -1:"
        " never",
    },
    "core_metric_every": {
        "type": disabled_is_zero,
        "help": "measure CORE every N steps and at the last one, where there is --core_data; 0 or -1: never",
    },
    "save_checkpoint_freq": {
        "type": disabled_is_none,
        "help": "write ckpt_N.pt every N steps (None or -1: only the final ckpt.pt and on a stop)",
    },
    "exp_name": {"help": "name of the experiment folder (None: d and the depth, such as d20)"},
    "use_pretrained": {
        "type": checkpoint_of_step,
        "help": "auto or -1: resume from the newest valid checkpoint of the experiment; N: from that of step"
        " N; a file; None: start afresh",
    },
}
OWN_FLAGS = (
    Flag("aspect_ratio", int, 64, "width for each layer of depth", low=1, scope=PLACE),
    Flag("head_dim", int, 128, "features of an attention head", low=1, scope=PLACE),
    Flag(
        "target_flops",
        float,
        -1.0,
        "train for so many floating-point operations, where --num-iterations gives no steps; -1: do not",
        low=-1,
        high=1e30,
        scope=SCHEDULE,
    ),
    Flag(
        "target_param_data_ratio",
        float,
        10.5,
        "tokens for each parameter of layers and head (Chinchilla: 20), where neither of these gives a"
        " length; batch, rates and decay follow it in any case; -1: no length of it",
        low=-1,
        high=1e6,
        scope=SCHEDULE,
    ),
    Flag(
        "total_batch_size",
        int,
        -1,
        "tokens of one step, over all processes; -1: chosen by the tokens of the training",
        low=-1,
        scope=PLACE,
    ),
    Flag("rate_scale", float, None, "factor of all rates (None: root of the batch over 2^19 tokens)", low=0),
    Flag("width_scale", float, None, "factor of embeddings' and head's rates (None: by the width)", low=0),
    Flag("decay_scale", float, None, "factor of the weight decay (None: by batch and depth)", low=0),
    Flag(
        "eval_tokens",
        int,
        40 * 524288,
        "tokens of an evaluation during training",
        low=1,
        scope=PLACE,
    ),
    Flag("run", str, NO_WANDB, "any name but 'dummy' turns --wandb on", scope=PLACE),
)


def own_groups() -> Mapping[str, Sequence[Flag]]:
    """This recipe's flags, and those of all recipes in the form that they have here."""
    groups: dict[str, Sequence[Flag]] = {"modern GPT": OWN_FLAGS}
    for title, flags in GROUPS.items():
        groups[title] = [replace(flag, **OTHER_FORMS.get(flag.name, {})) for flag in flags]
    return groups


def planned(args: Namespace) -> Horizon:
    """Of flags whose width and heads are known. Raises UserError."""
    batch, steps = args.total_batch_size, -1 if args.iterations is None else args.iterations
    if args.acc_steps is not None:
        batch = args.batch_size * args.acc_steps * args.sequence_length
        if args.total_batch_size not in (-1, batch):
            raise UserError(
                f"--total-batch-size {args.total_batch_size} is not {batch}, the tokens of --acc_steps"
                f" {args.acc_steps} micro-batches of --device-batch-size {args.batch_size}"
            )
    given = batch, steps, args.target_flops
    ratio = args.target_param_data_ratio
    return horizon(ModelSettings.from_args(args), args.aspect_ratio, args.head_dim, ratio, *given)


def resolve(args: Namespace) -> list[Problem]:
    """What follows from the depth: where it is None, it is filled in."""
    width, _ = width_and_heads(args.n_layer, args.aspect_ratio, args.head_dim)
    args.n_embd = args.n_embd or width
    args.n_head = args.n_head or max(1, args.n_embd // args.head_dim)
    args.exp_name = args.exp_name or f"d{args.n_layer}"
    args.wandb = args.wandb or args.run != NO_WANDB
    width, left = divmod(args.n_embd, args.n_head)
    if left or width % 2:
        line = (
            f"heads must have a whole, even width, not {args.n_embd} / {args.n_head} ="
            f" {args.n_embd / args.n_head:g}: give another --head-dim"
        )
        return [Problem(line, "head_dim", "n_embd", "n_head")]
    problems = cotformer.block_problems(args)
    if problems:
        return problems
    try:
        plan = planned(args)
    except UserError as error:
        return [Problem(str(error), "target_param_data_ratio", "total_batch_size", "acc_steps")]
    for name in ("rate_scale", "width_scale", "decay_scale"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(plan, name))
    return [*_length_problems(args, plan), *_batch_problems(args, plan), *_evaluation_problems(args)]


def _length_problems(args: Namespace, plan: Horizon) -> list[Problem]:
    is_given = args.iterations is not None and args.iterations > 0
    args.iterations = plan.steps
    if args.curriculum == LENGTH and not is_given:
        line = (
            "--curriculum length: its steps have fewer tokens at first, so tokens or FLOPs cannot set the"
            " horizon; give --num-iterations"
        )
        return [Problem(line, "curriculum", "iterations", "target_flops", "target_param_data_ratio")]
    if plan.steps is None:
        line = "no horizon: give --num-iterations, --target-flops or --target-param-data-ratio"
        return [Problem(line, "iterations", "target_flops", "target_param_data_ratio")]
    if plan.steps == 0:
        line = (
            f"the horizon is shorter than one step of {plan.batch} tokens: give a smaller --total-batch-size"
        )
        return [Problem(line, "total_batch_size", "target_flops", "target_param_data_ratio")]
    return []


def _batch_problems(args: Namespace, plan: Horizon) -> list[Problem]:
    if args.acc_steps is not None:
        return []
    sequences, left = divmod(plan.batch, args.sequence_length)
    flags = "total_batch_size", "sequence_length", "batch_size"
    if left or not sequences:
        line = f"--total-batch-size {plan.batch} is no multiple of --max-seq-len {args.sequence_length}"
        return [Problem(line, *flags)]
    args.acc_steps, left = divmod(sequences, args.batch_size)
    if left:
        sizes = ", ".join(map(str, batch_sizes_that_fit(sequences, 1)))
        line = (
            f"--total-batch-size {plan.batch}, {sequences} sequences, cannot be cut into micro-batches of"
            f" --device-batch-size {args.batch_size}; these fit: {sizes}"
        )
        return [Problem(line, *flags)]
    return []


def _evaluation_problems(args: Namespace) -> list[Problem]:
    if args.eval_batches is not None:
        return []
    tokens = args.batch_size * args.sequence_length
    args.eval_batches = args.eval_tokens // tokens
    if args.eval_batches:
        return []
    line = f"--eval-tokens {args.eval_tokens} is less than one batch, {tokens} tokens"
    return [Problem(line, "eval_tokens", "batch_size", "sequence_length")]


def notes(args: Namespace) -> list[str]:
    """As cotformer.notes."""
    told = cotformer.notes(args)
    if args.warmup_ratio + args.warmdown_ratio > 1:
        told.append("--warmup-ratio and --warmdown-ratio overlap: the rate jumps where one ends")
    return told


def assemble(args: Namespace, world: World, folder: Path) -> Parts:
    """As cotformer.assemble, with the plan in words, a forecast and the smoothed loss."""
    from optim.forecast import forecast
    from optim.reader import Record
    from optim.reporting import peak_flops
    from optim.smoothed_loss import SmoothedLoss

    parts = cotformer.assemble(args, world, folder)

    def describe(schedule: str) -> list[str]:
        peak = peak_flops(world.device)
        line = forecast(Record(folder, problems=[]), args, None if peak is None else peak * world.size)
        return [*parts.describe(schedule), plan_in_words(args), line]

    return replace(parts, describe=describe, hooks=(SmoothedLoss(args.log_freq), *parts.hooks))


def plan_in_words(args: Namespace) -> str:
    """Tokens, batch, and the factors of rates and decay."""
    batch = args.batch_size * args.acc_steps * args.sequence_length
    most = "at most " if args.curriculum == LENGTH else ""
    return (
        f"horizon: {args.iterations} steps of {most}{batch} tokens, {most}{args.iterations * batch:.4g} in"
        f" all; rates x {args.rate_scale:.4g}, of embeddings and head x {args.width_scale:.4g} more, weight"
        f" decay x {args.decay_scale:.4g}"
    )


RECIPE = Recipe(
    name="gpt",
    help="a modern GPT that is sized by its depth, as nanochat's base training",
    groups=own_groups(),
    assemble=assemble,
    old_flags=OLD_FLAGS,
    defaults=DEFAULTS,
    spellings=SPELLINGS,
    selftest=SELFTEST,
    resolve=resolve,
    check=cotformer.check,
    notes=notes,
)
