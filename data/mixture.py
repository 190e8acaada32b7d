"""A mixture of sources: which source a sample is of, and which of its windows.

    weights = given_weights("wiki=0.784,roam=0.196,primer=0.02", normalise=False)
    source = MixtureSource({"wiki": windows, ...}, weights, data_seed=0)

Both ways to sample are pure functions of the seed and the sample's number, so that seeking costs nothing:

  epochs   sources take turns so evenly that among the first n samples each has its share of n, to less than
           one sample; each is read without replacement within an epoch of its own (data/order.py)
  random   the source is drawn by its weight and the window begins anywhere, both with replacement
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config.mixture import EPOCHS, RANDOM
from data.batch import Batch, PlainSource
from data.bins import TokenWindows, identity_of_tokens
from data.order import SampleOrder, splitmix64, splitmix64_array
from data.sources import mixture_identity
from data.vocabulary import described, other_tokens
from errors import UserError

LONGEST_PERIOD = 1_000_000  # samples after which the turns of sources repeat
PERIOD = 1 << 17  # the same, of weights that are no fractions
NEAR = Fraction(1, 10**12)  # rounding of floats


def quotas(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of the weights, which sum to 1: samples of each source in a period.

    Exact where the weights are fractions with a common denominator of up to LONGEST_PERIOD, as decimals are,
    and shares of whole numbers; of others the shares are right to 1 / PERIOD. Raises UserError for a weight
    that is smaller.
    """
    fractions = [Fraction(weight).limit_denominator(LONGEST_PERIOD) for weight in weights]
    period = math.lcm(*(fraction.denominator for fraction in fractions))
    is_near = all(
        abs(fraction - Fraction(weight)) < NEAR for fraction, weight in zip(fractions, weights, strict=True)
    )
    if is_near and sum(fractions) == 1 and period <= LONGEST_PERIOD:
        return [int(fraction * period) for fraction in fractions]
    scaled = [weight * PERIOD for weight in weights]
    whole = [math.floor(value) for value in scaled]
    by_rest = sorted(range(len(weights)), key=lambda i: whole[i] - scaled[i])
    for i in by_rest[: PERIOD - sum(whole)]:
        whole[i] += 1
    unread = [weight for weight, number in zip(weights, whole, strict=True) if weight and not number]
    if unread:
        raise UserError(f"a weight of {unread[0]} is less than one sample in {PERIOD}: nothing would be read")
    return whole


class Turns:
    """Whose turn a sample is, so that every prefix has each source's share to less than one sample.

    The turns of one period are those of jobs with release times and deadlines, by the earliest deadline
    (Steiner and Yeomans 1993): the j-th sample of a source with share p is due in steps (j - 1) / p to j / p.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.quotas = np.array(quotas(weights), dtype=np.int64)
        self.period = int(self.quotas.sum())
        self.source_of = np.empty(self.period, dtype=np.int16)
        self.rank_of = np.empty(self.period, dtype=np.int64)  # samples of that source before, in the period
        given = [0] * len(weights)
        shares = [(number, int(quota)) for number, quota in enumerate(self.quotas) if quota]
        for turn in range(self.period):
            due = []
            for number, quota in shares:
                if given[number] * self.period <= turn * quota:
                    due.append((-(-(given[number] + 1) * self.period // quota), number))
            chosen = min(due)[1]
            self.source_of[turn], self.rank_of[turn] = chosen, given[chosen]
            given[chosen] += 1

    def locate(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of samples first .. first + count - 1, each (count,): the source's number, and how many samples of
        it come before.
        """
        periods, turns = np.divmod(np.arange(first, first + count, dtype=np.int64), self.period)
        source = self.source_of[turns].astype(np.int64)
        return source, periods * self.quotas[source] + self.rank_of[turns]

    def counts(self, samples: int) -> NDArray[np.int64]:
        """How many of the first samples are of each source, (sources,)."""
        periods, turns = divmod(samples, self.period)
        return periods * self.quotas + np.bincount(self.source_of[:turns], minlength=self.quotas.size)


def _key(name: str) -> int:
    """By its name, so that the order of one source does not depend on which others there are."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Place:
    """Where a sample comes from: a source, and the token that its window begins with."""

    source: str
    start: int


class MixtureSource(PlainSource):
    """Batches are those of TokenWindows, of several sources."""

    def __init__(
        self,
        sources: Mapping[str, TokenWindows],
        weights: Mapping[str, float],
        data_seed: int,
        sampling: str = EPOCHS,
        identities: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """weights: of exactly these sources; they sum to 1. identities: of each, as data.bins.identity_of has
        it; None for tokens that are no file's. meta: meta.json of the sources, whose tokens are alike.
        """
        assert sources.keys() == weights.keys(), "each source has a weight"
        self.names = sorted(sources)
        self.sources = [sources[name] for name in self.names]
        self.weights = [weights[name] for name in self.names]
        self.length = self.sources[0].length
        self.data_seed, self.sampling, self.identities = data_seed, sampling, identities
        self.meta = meta or {}
        self.seeds = [splitmix64(data_seed) ^ _key(name) for name in self.names]
        if sampling == EPOCHS:
            self.turns = Turns(self.weights)
            self.orders = []
            for windows, seed in zip(self.sources, self.seeds, strict=True):
                self.orders.append(SampleOrder(windows.n_windows, seed))
        self.seed = np.uint64(splitmix64(data_seed))
        self.limits = np.cumsum(self.weights)

    def places(self, first: int, count: int) -> list[Place]:
        """Where samples first .. first + count - 1 come from."""
        source, start = self._places(first, count)
        return [Place(self.names[s], int(at)) for s, at in zip(source, start, strict=True)]

    def _places(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source's number and the first token of each sample, each (count,)."""
        if self.sampling == RANDOM:
            return self._drawn(first, count)
        source, rank = self.turns.locate(first, count)
        start = np.empty(count, dtype=np.int64)
        for number in np.unique(source):
            mine = source == number  # whose ranks follow one another
            windows = self.orders[number].windows(int(rank[mine][0]), int(mine.sum()))
            start[mine] = windows * self.length
        return source, start

    def _drawn(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """With replacement: one hash of a sample's number draws the source, another one the start."""
        samples = np.arange(first, first + count, dtype=np.uint64)
        which = splitmix64_array(splitmix64_array(samples) ^ self.seed)
        share = (which >> np.uint64(11)).astype(np.float64) / 2.0**53
        source = np.minimum(np.searchsorted(self.limits, share, side="right"), self._last_drawn)
        starts = np.array([windows.tokens.size - self.length for windows in self.sources], dtype=np.uint64)
        where = splitmix64_array(which)
        return source.astype(np.int64), (where % starts[source]).astype(np.int64)

    @property
    def _last_drawn(self) -> int:
        """The last source that has a weight: rounding may leave the sum of the weights below 1."""
        return max(number for number, weight in enumerate(self.weights) if weight > 0)

    def samples(self, step: int, first: int, count: int) -> Batch:
        """As BatchSource.samples. Raises UserError for a token that the vocabulary lacks."""
        source, place = self._places(first, count)
        inputs = torch.empty(count, self.length, dtype=torch.int64)
        targets = torch.empty_like(inputs)
        for number in np.unique(source):
            mine = torch.from_numpy(source == number)
            part = self._read(number, place[source == number])
            inputs[mine], targets[mine] = part["inputs"], part["targets"]
        return Batch({"inputs": inputs, "targets": targets}, targets.numel())

    def _read(self, number: int, places: NDArray[np.int64]) -> Batch:
        """Samples of a source, at places of `_places`."""
        return self.sources[number].at(places)

    def items(self, step: int, first: int, count: int) -> int:
        return count * self.length

    def identity(self) -> dict[str, Any]:
        shares = dict(zip(self.names, self.weights, strict=True))
        if self.identities is not None:
            return mixture_identity(self.sampling, shares, self.identities)
        found = {}
        for name, windows in zip(self.names, self.sources, strict=True):
            found[name] = {"train": identity_of_tokens(windows.tokens)}
        return mixture_identity(self.sampling, shares, found) | {"order_seed": self.data_seed}

    def parts(self) -> dict[str, Any]:
        return {"vocabulary": asdict(described(self.meta))}

    def differs(self, state: dict[str, Any]) -> str | None:
        differ = other_tokens(state, self.meta, "the mixture")
        return f"{differ}: its embeddings begin as those of other tokens" if differ else None

    def size(self) -> dict[str, int]:
        return {"train_tokens": sum(int(windows.tokens.size) for windows in self.sources)}

    def describe(self, first: int, count: int, more: bool) -> str:
        places = [f"{place.source} from token {place.start}" for place in self.places(first, count)]
        return f"{', '.join(places)}{', ...' if more else ''}"
