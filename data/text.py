"""What a training on text reads: the splits of one dataset, or of each source of a mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config.mixture import EPOCHS
from data.batch import Batch, BatchSource
from data.bins import Splits, TokenWindows, open_splits
from data.mixture import MixtureSource
from data.packed import PackedMixture, PackedSource, Packing
from data.sources import Shares, Wanted
from data.token_source import TokenSource
from data.vocabulary import described
from errors import UserError


@dataclass(frozen=True)
class TextData:
    """parts: the splits of each source by its name; of a single dataset, the name is empty. weights: share of
    each. missing: sources that were left out. identities: of each, as data.bins.identity_of has it.
    """

    parts: Mapping[str, Splits]
    weights: Mapping[str, float]
    missing: Sequence[str] = ()
    sampling: str = EPOCHS
    identities: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def single(cls, splits: Splits) -> TextData:
        return cls({"": splits}, {"": 1.0})

    @property
    def is_mixture(self) -> bool:
        return "" not in self.parts

    @property
    def first(self) -> Splits:
        return next(iter(self.parts.values()))

    @property
    def meta(self) -> dict[str, Any]:
        """What is said of the tokens, which are alike in all sources."""
        return self.first.meta

    def packed(self, data_seed: int, packing: Packing) -> PackedSource | PackedMixture:
        """A source of packed rows, of which the index has to be prepared. Raises UserError."""
        if self.is_mixture:
            return PackedMixture(self.parts, self.weights, data_seed, self.identities, packing)
        return PackedSource(self.first, packing, data_seed)

    def source(self, data_seed: int) -> BatchSource:
        if not self.is_mixture:
            splits = self.first
            return TokenSource(splits.train, data_seed, splits.folder, splits.meta)
        windows = {name: splits.train for name, splits in self.parts.items()}
        return MixtureSource(windows, self.weights, data_seed, self.sampling, self.identities, self.meta)

    def describe(self, samples: int, in_windows: bool = True) -> list[str]:
        """Lines of what a run of so many samples reads. in_windows: they are windows of the running text."""
        if not self.is_mixture:
            splits = self.first
            counts = f"{splits.train.tokens.size:,} training and {splits.val.tokens.size:,} validation tokens"
            return [f"data: {splits.folder}, {counts}"]
        lines = [f"data: a mixture of {len(self.parts)} sources, sampling {self.sampling}"]
        if self.missing:
            lines.append(
                f"warning: sources of the mixture are not prepared: {', '.join(self.missing)}; the weights of"
                " the others are divided by their sum"
            )
        for name, splits in self.parts.items():
            share, epochs = self.weights[name], ""
            if in_windows:
                epochs = f", {samples * share / splits.train.n_windows:.2f} epochs to come"
            lines.append(
                f"  {name}: {splits.train.tokens.size:,} training and {splits.val.tokens.size:,} validation"
                f" tokens, share {share:.4g}{epochs}"
            )
        return lines


def open_text(
    wanted: Wanted, shares: Shares | None, sequence_length: int, vocab_size: int, populate: bool = False
) -> TextData:
    """The data that flags ask for, checked against the model's vocabulary. shares: of a mixture's sources.
    populate: read all of it now.

    Raises UserError with a line for each source with which something is wrong.
    """
    if shares is None:
        splits = open_splits(wanted.dataset, wanted.data_dir, sequence_length, vocab_size, populate)
        return TextData.single(splits)
    parts, wrong = {}, []
    for name in shares.weights:
        try:
            parts[name] = open_splits(name, wanted.data_dir, sequence_length, vocab_size, populate)
        except UserError as error:
            wrong += str(error).splitlines()
    wrong += _not_alike(parts)
    if wrong:
        raise UserError("\n".join(wrong))
    return TextData(parts, shares.weights, shares.missing, wanted.sampling, shares.identities)


def _not_alike(parts: Mapping[str, Splits]) -> list[str]:
    """Why sources cannot be mixed: their tokens stand for different things, or two are one."""
    lines = []
    folders: dict[str, str] = {}
    for name, splits in parts.items():
        place = str(splits.folder.resolve())
        if place in folders:
            lines.append(f"the sources {folders[place]} and {name} of the mixture are one dataset, {place}")
        folders[place] = name
    tokenizers = {name: described(splits.meta) for name, splits in parts.items()}
    if len(set(tokenizers.values())) > 1:
        named = ", ".join(f"{name}: {known.tokenizer or 'unknown'}" for name, known in tokenizers.items())
        lines.append(f"the sources of a mixture must be of one tokenizer, and these are not ({named})")
    return lines


class Joined:
    """The windows of several sets, one after the other."""

    def __init__(self, sets: Mapping[str, TokenWindows]) -> None:
        self.sets = dict(sets)
        sizes = [len(windows) for windows in self.sets.values()]
        self.begins = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self.begins[-1])

    def ranges(self) -> Iterator[tuple[str, int, int]]:
        """Name of each set, its first window and the one after its last."""
        for name, begin, end in zip(self.sets, self.begins, self.begins[1:], strict=False):
            yield name, int(begin), int(end)

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """The windows of these numbers (N,), in this order. Raises UserError."""
        parts, order = [], []
        for name, begin, end in self.ranges():
            mine = np.flatnonzero((numbers >= begin) & (numbers < end))
            if mine.size:
                parts.append(self.sets[name].batch(numbers[mine] - begin))
                order.append(mine)
        return _in_order(parts, np.concatenate(order))


def _in_order(parts: Sequence[Batch], places: NDArray[np.int64]) -> Batch:
    """Batches as one. places: of each of their samples."""
    back = torch.from_numpy(np.argsort(places))
    tensors = {}
    for name in parts[0].tensors:
        tensors[name] = torch.cat([part[name] for part in parts])[back]
    return Batch(tensors, sum(part.count for part in parts))
