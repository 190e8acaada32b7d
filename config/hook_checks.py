"""Rules for the flags of hooks: a line for each value or combination that cannot work."""

from __future__ import annotations

import math
import re
from argparse import Namespace

from config.mixture import names_of_sources
from config.values import Problem
from errors import UserError


def hook_problems(args: Namespace) -> list[Problem]:
    """Of what watches a training."""
    problems = []
    if args.early_stop is not None:
        problems += _early_stop_problems(args)
    for name in args.hook or ():
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
            problems.append(Problem(f"--hook {name!r} must be MODULE:CLASS, such as my_hooks:Enough", "hook"))
    if args.health and not args.log_freq:
        problems.append(Problem("--health counts log lines: give --log_freq", "health", "log_freq"))
    return problems


def _early_stop_problems(args: Namespace) -> list[Problem]:
    try:
        patience_and_delta(args.early_stop)
    except ValueError as error:
        return [Problem(f"--early_stop {error}", "early_stop")]
    if not args.eval_freq:
        line = "--early_stop needs evaluations during training: give --eval_freq"
        return [Problem(line, "early_stop", "eval_freq")]
    try:
        sources = names_of_sources(args.dataset)
    except UserError:  # a problem of --dataset
        return []
    if sources and args.track is None:
        line = f"--early_stop needs --track on a mixture, such as --track val_loss@{next(iter(sources))}"
        return [Problem(line, "early_stop", "track", "dataset")]
    return []


def patience_and_delta(text: str) -> tuple[int, float]:
    """The two numbers of --early_stop. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+):([^:]+)", text)
    try:
        patience, delta = (int(match[1]), float(match[2])) if match else (0, math.nan)
    except ValueError:
        patience, delta = 0, math.nan
    if patience < 1 or not 0 <= delta < math.inf:
        raise ValueError(
            "must be PATIENCE:DELTA, such as 5:0.001, with a PATIENCE of at least 1 and a DELTA of at least"
            f" 0, not {text!r}"
        )
    return patience, delta
