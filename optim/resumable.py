"""Whether a command may go on from a checkpoint, by its numbers and texts alone.

Needs no torch, so that a job can ask before it is queued.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.identity import differences
from data.bins import data_differences
from errors import UserError
from optim import initial
from optim.foreign import foreign_of
from optim.schedules import resumed_legs, shape_of

FORMAT = 1
# of a state, beside format and model
PARTS = {"itr", "args", "world_size", "optimizer", "scheduler", "scaler", "rng", "data", "gradient_meter"}
# and, where they are missing, a checkpoint is from before they were kept: skipped, overflows, vocabulary,
# precision, evaluation, rollbacks, initial; or the training has none: evaluations, best, hooks, complete,
# objective


def check_resumable(
    path: Path, state: Mapping[str, Any], args: Namespace, data: Mapping[str, Any] | None
) -> None:
    """Raises UserError where a checkpoint's training is not the one that the flags and data ask for, or
    cannot be resumed.

    data: from `identity_of`; None where the data do not exist yet.
    """
    kind = foreign_of(state)
    if kind is not None and vars(args).get("recipe") == kind.recipe:
        problems = kind.problems(state, args)
        if problems:
            raise UserError("\n".join(f"cannot resume {path}: {line}" for line in problems))
        return
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path} was not written by this training loop; eval.py can evaluate it, main.py cannot resume it"
        )
    lacking = sorted(PARTS - state.keys()) or (
        ["generators of some processes"] if len(state["rng"]) != state["world_size"] else []
    )
    if lacking:
        raise UserError(
            f"cannot resume {path}: it lacks {', '.join(lacking)}; move it away to go on from an older one"
        )
    wrong = differences(vars(args), state["args"])
    wrong += data_differences(data, state["data"]) + initial.file_differences(args, state)
    if wrong:
        raise UserError(
            "\n".join(f"cannot resume {path}: {line}; give that, or another --exp_name" for line in wrong)
        )
    resumed_legs(state["scheduler"], shape_of(args), args.iterations, args.extend)
