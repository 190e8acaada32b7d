"""The teacher of a distillation, or the reference of a policy, from its checkpoint.

teacher = load_teacher("exps/stdlib/base/deep")
objective = Distillation(network, teacher.network, file=teacher.file)
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import config
from config.identity import INHERITED
from data.vocabulary import other_tokens
from errors import UserError
from models import make_model_from_args
from models.weights import load_weights
from optim import initial
from optim.objectives.distillation import TEACHER
from optim.opening import open_checkpoint
from optim.reader import Record
from optim.restore import find_checkpoint, trained_settings

FLAG = f"--{TEACHER}"


@dataclass(frozen=True)
class Teacher:
    """network: with its weights, in evaluation mode. args: flags of its training. facts: what its checkpoint
    holds, but for weights and optimiser. file: as optim.initial.describe has it. flag: that named it.
    """

    network: Any
    args: Namespace
    facts: Mapping[str, Any]
    file: dict[str, str]
    flag: str = FLAG

    def dtype(self, wanted: str | None, otherwise: torch.dtype) -> torch.dtype:
        """That it computes in. wanted: a name; None: that of its training, `otherwise` where its checkpoint
        does not say.
        """
        name = wanted or self.facts.get("precision")
        return otherwise if name is None else getattr(torch, name)


def find_teacher(given: str, folder: Path, results: str, name: str = TEACHER, flag: str = FLAG) -> Path:
    """The checkpoint that a flag means, by its name also below `results`; of its folder the one that the
    experiment (`folder`) began with under this name, where it is still there. Raises UserError.
    """
    begun = Record(folder, problems=[]).frozen.get(name)
    if begun is not None and not Path(given).is_file() and Path(begun["file"]).is_file():
        return Path(begun["file"])
    return find_checkpoint(given, flag, results)


def load_teacher(given: str | Path, path: Path | None = None, flag: str = FLAG) -> Teacher:
    """given: a checkpoint file, or an experiment's folder or name; path: the file that it means, where that
    is known. Raises UserError for what is no checkpoint.
    """
    path = path or find_checkpoint(str(given), flag)
    file = initial.describe(path, str(given))
    try:
        state = open_checkpoint(path)
        trained = trained_settings(path, state)
        kept = {name: value for name, value in trained.items() if name in INHERITED or name == "recipe"}
        args = config.add_defaults(kept)
        network = make_model_from_args(args)
        load_weights(network, state["model"])
    except UserError as error:
        raise UserError(f"{flag} {given}: {error}") from None
    facts = {name: value for name, value in state.items() if name not in ("model", "optimizer")}
    return Teacher(network.eval(), args, facts, file, flag)


def check_teacher(
    teacher: Teacher, args: Namespace, datasets: Iterable[tuple[Path, Mapping[str, Any]]]
) -> None:
    """Raises UserError where it cannot be used on some datasets: the folder and meta.json of each."""
    said, settings = f"{teacher.flag} {teacher.file['given']}", teacher.network.settings
    if settings.vocab_size != args.vocab_size:
        raise UserError(
            f"{said} has a vocabulary of {settings.vocab_size}, --vocab_size is {args.vocab_size}:"
            " distributions can be compared over the same tokens only"
        )
    for folder, meta in datasets:
        differ = other_tokens(teacher.facts, meta, folder)
        if differ:
            raise UserError(f"{said}: {differ}")
    if args.sequence_length > settings.sequence_length:
        raise UserError(
            f"{said} was trained on {settings.sequence_length} tokens, --sequence_length is"
            f" {args.sequence_length}"
        )
