"""Rules that tie flags together, for the recipes that take these flags: a line for each value or combination
that cannot work.
"""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

from config.mixture import given_weights, has_paths, is_mixture
from config.naming import MAX_COMPONENT, bad_name
from config.values import Problem
from errors import UserError


def optimiser_problems(args: Namespace) -> list[Problem]:
    problems = []
    if args.opt == "adamw" and (args.beta1 >= 1 or args.beta2 >= 1):
        problems.append(Problem("--beta1 and --beta2 must be below 1", "beta1", "beta2"))
    if args.scheduler == "wsd" and args.warmup_percent + args.decay_percent > 1:
        problems.append(
            Problem(
                f"--warmup_percent {args.warmup_percent} + --decay_percent {args.decay_percent} are more than"
                " the whole run",
                "warmup_percent",
                "decay_percent",
            )
        )
    if args.scheduler == "warmup_cos" and args.min_lr > args.lr:
        line = f"--min_lr {args.min_lr} is more than --lr {args.lr}: the rate would rise"
        problems.append(Problem(line, "min_lr", "lr"))
    return problems


def place_problems(args: Namespace) -> list[Problem]:
    """Of the device, the names and the dataset."""
    problems = []
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", args.device):
        problems.append(Problem(f"--device must be auto, cpu, cuda or cuda:N, not {args.device!r}", "device"))
    for name in ("exp_name", "run_prefix"):
        given = getattr(args, name)
        reason = None if given is None else bad_name(given)
        if reason:
            problems.append(Problem(f"--{name} {reason}", name))
    parts = (args.exp_name or "").split("/")
    if any(len(part.encode()) > MAX_COMPONENT for part in parts):
        problems.append(Problem(f"--exp_name must stay under {MAX_COMPONENT + 1} bytes", "exp_name"))
    return problems + _dataset_problems(args)


def _dataset_problems(args: Namespace) -> list[Problem]:
    if is_mixture(args.dataset):
        try:
            given_weights(args.dataset, args.normalise_weights)
        except UserError as error:
            return [Problem(line, "dataset", "normalise_weights") for line in str(error).splitlines()]
        return []
    if has_paths(args.dataset):
        line = (
            f"--dataset {args.dataset}: sources of a mixture are names of folders below --data_dir, not paths"
        )
        return [Problem(line, "dataset")]
    if not args.dataset or bad_name(Path(args.dataset).name):
        return [Problem(f"--dataset {args.dataset!r} is not a folder name", "dataset")]
    return []


def notes_on_checkpoints(args: Namespace) -> list[str]:
    late = sorted(step for step in set(args.keep_steps or ()) if step > args.iterations)
    return [
        f"--keep_steps {step} is beyond --iterations {args.iterations}: there will be no checkpoint of that"
        " step"
        for step in late
    ]


def check_world_size(args: Namespace, world_size: int) -> None:
    """Raises UserError where the micro-batches of a step cannot be shared evenly."""
    if args.acc_steps % world_size:
        raise UserError(
            f"--acc_steps {args.acc_steps} is not divisible by {world_size} processes: each runs acc_steps /"
            f" processes micro-batches of --batch_size {args.batch_size} a step"
        )
