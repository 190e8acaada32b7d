"""The CoTFormer family of the paper: next-token prediction, middle layers that are repeated."""

from __future__ import annotations

from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.checks import (
    notes_on_checkpoints,
    objective_problems,
    optimiser_problems,
    place_problems,
    unused_by_objective,
    unused_by_optimiser,
)
from config.curriculum import unused_by_curriculum
from config.flags import FLAGS, GROUPS
from config.hook_checks import hook_problems
from config.mixture import has_paths, is_mixture
from config.old_flags import OLD_FLAGS
from config.packing import NONE
from config.recipe import Recipe, flags_of
from config.values import Problem
from errors import UserError
from models.settings import GATE_CHANNELS
from models.variants import VARIANTS
from optim.tracked import Tracked, evaluations_of

if TYPE_CHECKING:
    from distributed.world import World
    from optim.progress import Parts

# the small training of --selftest_resume, between the defaults and what is given
SELFTEST: dict[str, Any] = {
    "dataset": "selftest",
    "vocab_size": 256,
    "model": "adm",
    "n_layer": 4,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 3,
    "n_embd": 64,
    "n_head": 4,
    "sequence_length": 64,
    "batch_size": 4,
    "acc_steps": 4,
    "iterations": 60,
    "dropout": 0.1,
    "depth_embedding": "linear_learned",
    "eval_freq": 10,
    "eval_batches": 4,
    "log_freq": 1,
    "save_checkpoint_freq": 7,
}
NOT_OF_MODERN_BLOCKS = (
    "bias",
    "attn_bias",
    "mlp_bias",
    "norm_bias",
    "scaled_init",
    "dropout",
    "positional_encoder",
    "attention_window_length",
)
OF_MODERN_BLOCKS = ("n_kv_head", "window_pattern", "depth_index")


def check(args: Namespace) -> list[Problem]:
    """A line for each combination of values that cannot work."""
    return [
        *_layer_problems(args),
        *_width_problems(args),
        *block_problems(args),
        *_routing_problems(args),
        *_tracking_problems(args),
        *objective_problems(args),
        *optimiser_problems(args),
        *place_problems(args),
        *hook_problems(args),
    ]


def _layer_problems(args: Namespace) -> list[Problem]:
    problems = []
    loops = VARIANTS[args.model].loop
    middle = args.n_layer - args.n_layer_begin - args.n_layer_end
    if middle < int(loops):
        problems.append(
            Problem(
                f"--n_layer_begin {args.n_layer_begin} + --n_layer_end {args.n_layer_end} leave no layer of"
                f" --n_layer {args.n_layer} between them",
                "n_layer_begin",
                "n_layer_end",
                "n_layer",
            )
        )
    if loops and args.min_repeat > args.n_repeat:
        line = f"--min_repeat {args.min_repeat} is more than --n_repeat {args.n_repeat}"
        problems.append(Problem(line, "min_repeat", "n_repeat"))
    return problems


def _width_problems(args: Namespace) -> list[Problem]:
    problems = []
    width = args.n_embd // args.n_head
    if args.n_embd % args.n_head:
        line = f"--n_embd {args.n_embd} is not divisible by --n_head {args.n_head}"
        problems.append(Problem(line, "n_embd", "n_head"))
    elif args.positional_encoder == "rotary" and width % 2:
        problems.append(
            Problem(
                f"rotary positions need an even head width, but --n_embd {args.n_embd} / --n_head"
                f" {args.n_head} = {width}",
                "n_embd",
                "n_head",
            )
        )
    if args.dropout >= 1:
        problems.append(Problem("--dropout must be below 1", "dropout"))
    return problems


def block_problems(args: Namespace) -> list[Problem]:
    """Of modern blocks."""
    if args.block != "modern":
        return []
    problems = []
    if not args.window_pattern or set(args.window_pattern.upper()) - {"S", "L"}:
        line = f"--window_pattern {args.window_pattern!r} must be letters S and L, such as SSSL"
        problems.append(Problem(line, "window_pattern"))
    if args.n_head % (args.n_kv_head or args.n_head):
        line = f"--n_head {args.n_head} is not divisible by --n_kv_head {args.n_kv_head}"
        problems.append(Problem(line, "n_head", "n_kv_head"))
    if args.n_embd < GATE_CHANNELS:
        line = f"--block modern needs --n_embd {GATE_CHANNELS} or more: so many channels are read by gates"
        problems.append(Problem(line, "block", "n_embd"))
    for name in NOT_OF_MODERN_BLOCKS:
        if getattr(args, name) != FLAGS[name].default:
            problems.append(Problem(f"--block modern has no --{name}", "block", name))
    return problems


def _routing_problems(args: Namespace) -> list[Problem]:
    problems = []
    routes = VARIANTS[args.model].routes
    choices = args.n_repeat - 1  # after each pass but the last
    for name in ("eval_length_factor", "training_length_factor"):
        factors = getattr(args, name) or []
        if routes and factors and len(factors) != choices:
            line = f"--{name} needs n_repeat - 1 = {choices} values, not {len(factors)}"
            problems.append(Problem(line, name, "n_repeat"))
        if any(later > earlier for earlier, later in pairwise(factors)):
            line = f"--{name} must not increase: a token that has stopped cannot go on again"
            problems.append(Problem(line, name))
    thresholds = args.router_threshold or [0.5]
    if len(thresholds) not in (1, choices):
        line = f"--router_threshold needs one value or n_repeat - 1 = {choices}, not {len(thresholds)}"
        problems.append(Problem(line, "router_threshold", "n_repeat"))
    return problems


def _tracking_problems(args: Namespace) -> list[Problem]:
    if args.track is None or has_paths(args.dataset):  # which is a problem of its own
        return []
    try:
        known = evaluations_of(args.dataset, args.objective)
    except UserError:  # a problem of --dataset
        return []
    try:
        Tracked(args.track, known, args.eval_freq)
    except UserError as error:
        return [Problem(str(error), "track", "dataset", "eval_freq")]
    return []


def notes(args: Namespace) -> list[str]:
    """A line for each setting that was changed and has no effect on this model."""
    variant = VARIANTS[args.model]
    unused = [flag.name for flag in OLD_FLAGS]
    if args.min_repeat != args.n_repeat:  # the published commands have them alike
        unused.append("min_repeat")
    reasons = dict.fromkeys(unused, ": the flag is accepted for old command lines")
    if not variant.routes:
        for name in ("eval_length_factor", "training_length_factor", "routing", "router_threshold"):
            reasons[name] = f" on {args.model}: it routes no tokens"
    if not variant.depth_emb:
        reasons["depth_embedding"] = f" on {args.model}"
    if not variant.loop:
        reasons["depth_index"] = f" on {args.model}: it repeats no layers"
    if args.block != "modern":
        reasons |= dict.fromkeys(OF_MODERN_BLOCKS, f" on --block {args.block}")
    if not is_mixture(args.dataset):
        for name in ("sampling", "missing_sources", "normalise_weights"):
            reasons[name] = ": --dataset is no mixture"
    if args.packing == NONE:
        reasons["packing_buffer"] = f": --packing is {NONE}"
    reasons |= unused_by_curriculum(args)
    if not args.sample_every:
        for name in ("sample_prompts", "sample_tokens", "sample_temperature"):
            reasons[name] = ": --sample_every is 0"
    if args.core_data is None:
        reasons |= dict.fromkeys(
            ("core_metric_every", "core_metric_max_per_task"), ": there is no --core_data"
        )
    elif not args.core_metric_every:
        reasons["core_data"] = ": --core_metric_every is 0"
    if not args.core_metric_every:  # off, as it was asked for
        reasons.pop("core_metric_every", None)
    if not args.fp8:
        reasons["fp8_recipe"] = ": --fp8 is not given"
    reasons |= unused_by_optimiser(args) | unused_by_objective(args)
    flags = flags_of(vars(args))
    changed = [name for name in reasons if getattr(args, name) != flags[name].default]
    return [f"--{name} has no effect{reasons[name]}" for name in changed] + notes_on_checkpoints(args)


def assemble(args: Namespace, world: World, folder: Path) -> Parts:
    from optim.language_model import assemble

    return assemble(args, world, folder)


RECIPE = Recipe(
    name="cotformer",
    help="a model of the CoTFormer family, on the tokens of a dataset",
    groups=GROUPS,
    assemble=assemble,
    old_flags=OLD_FLAGS,
    selftest=SELFTEST,
    check=check,
    notes=notes,
)
