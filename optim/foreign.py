"""Checkpoints of other training loops that are read as ours: a row of FOREIGN each, found by what a file
holds. Needs no torch.

    kind = foreign_of(content)      # None: a checkpoint of ours
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.byte_format import BYTE_GPT, is_its_file, periodic_name
from optim import byte_file

State = dict[str, Any]


@dataclass(frozen=True)
class Foreign:
    """recipe: whose flags a file is read as, and whose trainings may go on from it. recognises: whether a
    content is of this kind. as_ours: the content of the file at a path as a checkpoint of ours, its own
    content included. problems: a line for each reason why a training with these flags cannot go on from a
    content, which may be without tensors (optim.peek). completed: a state from `as_ours` with what resuming
    needs beside, and a line on what is not the file's; of what this run has itself, the names of the
    network's parameters in order, and the path. step_name: its name of the file of a step.

    `as_ours` and `completed` raise UserError.
    """

    recipe: str
    recognises: Callable[[Mapping[str, Any]], bool]
    as_ours: Callable[[Mapping[str, Any], Path], State]
    problems: Callable[[Mapping[str, Any], Namespace], list[str]]
    completed: Callable[[State, State, list[str], Path], tuple[State, str]]
    step_name: Callable[[int], str]


FOREIGN = (
    Foreign(BYTE_GPT, is_its_file, byte_file.as_ours, byte_file.problems, byte_file.completed, periodic_name),
)


def foreign_of(content: Mapping[str, Any]) -> Foreign | None:
    """The kind of a checkpoint that another loop wrote; None for every other."""
    return next((kind for kind in FOREIGN if kind.recognises(content)), None)
