"""What two sets of flags have in common: the same training, the same evaluation. All of it follows from the
flags' scopes.

    differences(now, then)      # a line for each setting that makes `now` another training than `then`

The data are left out here: a name says little about them; data.bins compares what they hold.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from config.recipe import DEFAULT_RECIPE, flags_of, recipe_of
from config.schema import EVALUATION, IDENTITY, SCHEDULE, Flag
from models.variants import VARIANTS

BATCH = ("batch_size", "acc_steps")  # most trainings depend on their product alone
# compared by what the files hold (optim.initial), where both have one
CHECKPOINTS = ("init_from", "teacher", "reference")
# how much text is read: no setting of the model, so none inherits it
OF_ONE_EVALUATION = ("eval_seq_length", "eval_sample_size")


def names_of(*scopes: str, args: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, ...]:
    """The flags of some scopes, in their order. args: whose recipe has them; the default one's without."""
    return tuple(name for name, flag in flags_of(args).items() if flag.scope in scopes)


# what a program that opens a checkpoint takes over; where the training ran is no business of an evaluation
# elsewhere
INHERITED = tuple(name for name in names_of(IDENTITY, SCHEDULE, EVALUATION) if name not in OF_ONE_EVALUATION)


def cut_matters(args: Mapping[str, Any]) -> bool:
    """Whether the training depends on how a batch is cut into micro-batches: that of some models, and of FP8
    where a micro-batch's tensors share a scale.
    """
    shares_scale = bool(args.get("fp8")) and args["fp8_recipe"] == "tensorwise"
    variant = VARIANTS.get(args["model"])  # of a text network
    return shares_scale or (variant is not None and variant.cut_matters)


def effective_batch(args: Mapping[str, Any]) -> int | None:
    """Sequences of a step; None where the flags do not say, as those of a damaged file."""
    size, steps = args.get("batch_size"), args.get("acc_steps")
    return size * steps if isinstance(size, int) and isinstance(steps, int) else None


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """A line for each setting that makes `now` another training than `then`; settings that `then` lacks had
    their defaults.
    """
    name_now, begun = now.get("recipe", DEFAULT_RECIPE), then.get("recipe", DEFAULT_RECIPE)
    if name_now != begun:
        return [f"the checkpoint is of recipe {begun}, this run of {name_now}"]
    same_batch = not cut_matters(now) and effective_batch(now) == effective_batch(then)
    passed = {"dataset", *(BATCH if same_batch else ())}
    passed |= {name for name in CHECKPOINTS if now.get(name) is not None and then.get(name) is not None}
    flags = flags_of(now)
    recipe = recipe_of(now)
    spellings = {name: spelling for spelling, name in recipe.spellings.items()}
    lines = []
    for name in names_of(IDENTITY, args=now):
        if name in passed:
            continue
        recorded = _recorded(then, name, flags)
        if now[name] == recorded:
            continue
        if name in spellings and recipe.sections:
            lines.append(differing(spellings[name], recorded, now[name]))
        else:
            flag = spellings.get(name, name)
            lines.append(f"--{flag}: the checkpoint has {recorded}, this run {now[name]}")
    return lines


def differing(field: str, loaded: object, current: object) -> str:
    """A field of the config files of a recipe whose sections name their fields."""
    return f"{field}: loaded={loaded}, current={current}"


def _recorded(then: Mapping[str, Any], name: str, flags: Mapping[str, Flag]) -> Any:
    """What an experiment was trained with: a flag that came later has its default."""
    if name == "data_seed" and then.get(name) is None:
        return then.get("seed", flags["seed"].default)
    return then.get(name, flags[name].default)


def fingerprint(args: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """A short hash of what makes a training this one: its identity, number of steps, data and initial
    weights.
    """
    flags, values = flags_of(args), {}
    for name in names_of(IDENTITY, args=args):
        # those that are default are left out, so that a flag that is added changes nothing
        if name not in ("dataset", *CHECKPOINTS, *BATCH) and args[name] != flags[name].default:
            values[name] = args[name]
    if "recipe" in args:
        values["recipe"] = args["recipe"]
    batch: list[int] | int | None = effective_batch(args)
    if cut_matters(args):
        batch = [args[name] for name in BATCH]
    text = json.dumps([values, batch, args["iterations"], data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def evaluation_of(args: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Every setting that changes an evaluation's numbers, except the data and those that a program itself
    varies (`without`).
    """
    return {
        name: args[name]
        for name in names_of(IDENTITY, EVALUATION, args=args)
        if name in args and name != "dataset" and name not in without
    }


def changed_for_evaluation(args: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, str]:
    """Settings of the training that an evaluation changed, each as the text "--X A instead of B".

    Batch sizes do not count: no network's outputs depend on what it is evaluated together with.
    """
    return {
        name: f"--{name} {args[name]} instead of {trained[name]}"
        for name in names_of(IDENTITY, args=args)
        if name not in ("dataset", *BATCH) and args[name] != trained[name]
    }


def is_full_compute(args: Namespace, trained: Namespace) -> bool:
    """Whether every token made all passes that the model was trained with."""
    is_routed = VARIANTS[args.model].routes
    if is_routed and args.routing != "capacity":
        return False
    factors = args.eval_length_factor if is_routed else None
    return all(factor == 1 for factor in factors or ()) and args.n_repeat >= trained.n_repeat
