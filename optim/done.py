"""Whether an experiment is finished as a command asks for it.

Needs no torch, so that a job can ask before it is queued.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.identity import differences
from config.recipe import recipe_of
from data.bins import data_differences
from data.sources import Wanted
from errors import UserError
from optim import initial
from optim.names import FINAL, SUMMARY, numbered
from optim.reader import Record
from optim.schedules import WAYS_TO_EXTEND


def wanted_data(args: Namespace) -> Any:
    """What flags say of the data, in the form of data.sources.Wanted."""
    wanted = recipe_of(vars(args)).wanted
    return Wanted.of(vars(args)) if wanted is None else wanted(vars(args))


def is_finished(folder: Path, args: Namespace, data: Mapping[str, Any] | None = None) -> bool:
    """Whether all iterations of the experiment are done. data: their identity (None: of what --dataset
    names).

    Raises UserError where it is another one than was asked for.
    """
    record = Record(folder)
    if record.summary is None:
        return False
    then, done = record.summary.get("args"), record.done_iterations
    if not isinstance(then, dict) or done is None:
        raise UserError(
            f"{folder / SUMMARY} does not say how many iterations were done; move it away to train on"
        )
    wrong = differences(vars(args), then)
    if data is None:
        data = wanted_data(args).identity()
    if data is not None and isinstance(record.summary.get("data"), dict):
        wrong += data_differences(data, record.summary["data"])
    wrong += initial.file_differences(args, record.summary)
    if wrong:
        raise UserError(
            "\n".join(
                f"{folder} is finished with other settings: {line}; give that, or another --exp_name"
                for line in wrong
            )
        )
    if args.iterations < done:
        raise UserError(
            f"{folder} is finished with {done} iterations, --iterations asks for {args.iterations}; give"
            " another --exp_name"
        )
    if args.iterations > done and args.extend is None:
        raise UserError(
            f"{folder} is finished with {done} iterations, --iterations asks for {args.iterations};"
            f" {WAYS_TO_EXTEND}"
        )
    if args.iterations > done and not (folder / FINAL).exists() and not numbered(folder):
        raise UserError(f"{folder} is finished, but holds no checkpoint to extend; give another --exp_name")
    return args.iterations == done
