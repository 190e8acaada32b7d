"""Which datasets a training reads, by its flags: one, or those of a mixture.

Needs no torch, so that a job can ask before it is queued.
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.groups.objective import EXAMPLES, NEXT_TOKEN
from config.mixture import DROP, EPOCHS, ERROR, effective_weights, given_weights, is_mixture, names_of_sources
from config.packing import NONE
from data.bins import (
    META,
    dataset_folder,
    identity_of,
    is_prepared,
    label,
    not_prepared,
    other_format,
    read_meta,
)
from data.bpe import END_OF_TEXT
from data.setup import is_built_in
from data.vocabulary import OF_GPT2, described
from errors import UserError


@dataclass(frozen=True)
class Shares:
    """weights: of the sources that are there, which sum to 1. missing: names of the others. identities: of
    each that is there, as data.bins.identity_of has it.
    """

    weights: dict[str, float]
    missing: list[str]
    identities: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What flags say of the data, under their names."""

    dataset: str
    data_dir: str | None = None
    sampling: str = EPOCHS
    missing_sources: str = ERROR
    normalise_weights: bool = False
    vocab_size: int | None = None
    track: str | None = None
    packing: str = NONE
    objective: str = NEXT_TOKEN

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Wanted:
        return cls(**{name: flags[name] for name in cls.__dataclass_fields__ if name in flags})

    @property
    def is_mixture(self) -> bool:
        return is_mixture(self.dataset)

    @property
    def names(self) -> list[str]:
        """Of the datasets. Raises UserError."""
        return names_of_sources(self.dataset) or [self.dataset]

    @property
    def weights(self) -> dict[str, float]:
        """Of each dataset. A single one has weight 1. Raises UserError."""
        if not self.is_mixture:
            return {self.dataset: 1.0}
        return given_weights(self.dataset, self.normalise_weights)

    def folder(self, name: str) -> Path:
        return dataset_folder(name, self.data_dir)

    @property
    def prepared(self) -> dict[str, Path]:
        """The folder of each dataset whose bins are there. Raises UserError."""
        folders = {name: self.folder(name) for name in self.names}
        return {name: folder for name, folder in folders.items() if is_prepared(folder)}

    @property
    def is_prepared(self) -> bool:
        """Whether the bins of all datasets are there. Raises UserError."""
        return len(self.prepared) == len(self.names)

    def lacking(self) -> list[str]:
        """A line for each dataset that a training needs, that is not prepared, and that is not made on first
        use, and for each that holds something else than it reads. Raises UserError.
        """
        here = self.prepared
        format = self.format
        absent = [name for name in self.names if name not in here and not (is_built_in(name) and not format)]
        if self.is_mixture and self.missing_sources == DROP and len(absent) < len(self.names):
            absent = [name for name in absent if name in self.required]
        lines = [not_prepared(name, self.folder(name), self.vocab_size, format) for name in absent]
        return lines + self.of_other_format()

    @property
    def format(self) -> str | None:
        """Of the examples that the objective is trained on; None: it is trained on running text."""
        return EXAMPLES.get(self.objective)

    def of_other_format(self) -> list[str]:
        """A line for each prepared dataset that holds something else than what the objective is trained on.
        Raises UserError.
        """
        lines = []
        for folder in self.prepared.values():
            wrong = other_format(folder, read_meta(folder), self.format)
            if wrong:
                lines.append(wrong)
        return lines

    def end_of_text(self) -> int | None:
        """The token that ends a document of the prepared datasets; None where documents need not be told from
        each other.

        Raises UserError with a line for each dataset where they must be, and no token does it.
        """
        if self.packing == NONE:
            return None
        found, wrong = {}, []
        for name, folder in self.prepared.items():
            found[name] = _end_of_text(name, read_meta(folder))
            if found[name] is None:
                wrong.append(
                    f"--packing {self.packing} needs documents that end with a token of their own, and"
                    f" {folder / META} names none (end_of_text): give --packing {NONE}, or a dataset of"
                    " another tokenizer"
                )
        if len(set(found.values())) > 1 and not wrong:
            named = ", ".join(f"{name}: {token}" for name, token in found.items())
            wrong.append(f"--packing {self.packing}: documents of the sources end differently ({named})")
        if wrong:
            raise UserError("\n".join(wrong))
        return next(iter(found.values()), None)

    @property
    def required(self) -> list[str]:
        """Sources that must not be missing: the one whose loss is tracked."""
        source = (self.track or "").partition("@")[2]
        return [source] if source in self.names else []

    def shares(self, need: int) -> Shares:
        """Of the datasets that are prepared. need: tokens that each must have.

        Raises UserError with a line for everything that is wrong.
        """
        lacking = self.lacking()
        if lacking:
            raise UserError("\n".join(lacking))
        here = self.identities()
        lengths = {name: found["train"]["tokens"] for name, found in here.items()}
        may_drop = self.missing_sources == DROP
        weights, missing = effective_weights(self.weights, lengths, need, may_drop, self.required)
        return Shares(weights, missing, here)

    def identities(self) -> dict[str, dict[str, dict[str, Any]]]:
        """`data.bins.identity_of` of each dataset that is prepared. Raises UserError."""
        found = {name: identity_of(folder) for name, folder in self.prepared.items()}
        return {name: each for name, each in found.items() if each is not None}

    def identity(self) -> dict[str, Any] | None:
        """What identifies the data; None where they are not prepared. As the source of batches has it.

        Raises UserError.
        """
        if not self.is_mixture:
            return identity_of(self.folder(self.dataset))
        here = self.prepared
        to_be_made = [name for name in self.names if name not in here and is_built_in(name)]
        if to_be_made or self.lacking():
            return None
        shares = self.shares(need=0)
        return mixture_identity(self.sampling, shares.weights, shares.identities)


def _end_of_text(dataset: str, meta: Mapping[str, Any]) -> int | None:
    """As meta.json says; else that of a dataset whose name stands for GPT-2's tokens."""
    if "end_of_text" in meta or described(meta).tokenizer is not None or label(dataset) not in OF_GPT2:
        return meta.get("end_of_text")
    return END_OF_TEXT


def lacking_sources(args: Namespace) -> list[str]:
    """A line for each source of the mixture that flags name and that is not prepared, whatever its weight."""
    wanted = Wanted.of(vars(args))
    if wanted.is_mixture:
        with suppress(UserError):  # a problem of the flag, which is reported as that
            return wanted.lacking()
    return []


def mixture_identity(
    sampling: str, shares: Mapping[str, float], sources: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What identifies a mixture. sources: identity of each."""
    names = sorted(shares)
    weights = {name: shares[name] for name in names}
    identities = {name: sources[name] for name in names}
    return {"mixture": {"sampling": sampling, "weights": weights, "sources": identities}}


def joined_identity(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What identifies the splits of several sources together, in the form of one. splits: of each by name, as
    data.bins.identity_of has it.
    """
    blocks = hashlib.sha256("".join(f"{name} {splits[name]['blocks']} " for name in splits).encode())
    tokens = sum(split["tokens"] for split in splits.values())
    return {"tokens": tokens, "blocks": blocks.hexdigest(), "sha256": None, "sources": dict(splits)}
