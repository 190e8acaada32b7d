"""Error of a mean over windows of text, which depend on each other: neighbours come from one document.

    documents = documents_of(splits.val, chosen, splits.meta)
    found = interval(losses, documents)                         # losses (windows,)
    found.mean, found.low, found.high, found.sem, found.clusters.words()

Windows are grouped in long stretches, and by document where meta.json says what ends one; the wider of the
two intervals counts, as neighbouring documents may be alike too. The error of the mean is the delete-one
jackknife over the groups, with Student's t. Its degrees of freedom are those of as many groups of equal size
with as much information: Carter, Schnepel and Steigerwald (2017), Review of Economics and Statistics 99(4),
for groups without a correlation inside; the jackknife makes up for the correlation that there is. For pairs,
give the differences of two models' losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from data import TokenWindows

LEVEL = 0.95
SAMPLE = "spread evenly"  # how windows are chosen where not all are read
# stretches of text; more would be shorter, and so depend on each other; fewer would say less about the spread
BLOCKS, FEWEST_BLOCKS = 20, 8
BLOCK_WINDOWS = 16  # in a stretch, where there are enough for the fewest
FEWEST_DOCUMENTS = 3.0  # as if of equal size; fewer say nothing about the spread
FEW_DOCUMENTS = 8.0  # as if of equal size; an interval by fewer holds the mean less often than it says
UNEQUAL = 0.5  # share of the documents that they are worth, below which that is reported
SLICE = 1 << 24  # tokens that are searched at once


@dataclass(frozen=True)
class Clusters:
    """kind: documents or blocks. of: (windows,) int64, the cluster of each window."""

    kind: str
    of: NDArray[np.int64]

    @property
    def count(self) -> int:
        return np.unique(self.of).size

    def words(self) -> str:
        """For people."""
        worth = equal_clusters(self.of)
        if self.kind == "documents":
            text = f"{self.count:,} documents" + (
                f", worth {worth:,.0f} of equal length" if worth < UNEQUAL * self.count else ""
            )
            return text if worth >= FEW_DOCUMENTS else f"{text}: too few to be relied on"
        length = self.of.size / self.count
        text = f"{self.count} stretches of {length:,.0f} windows"
        return (
            text
            if length >= BLOCK_WINDOWS
            else f"{text}: too short to be relied on where documents are longer"
        )


@dataclass(frozen=True)
class Interval:
    """A mean, its standard error, the ends of its 95% interval, and the groups by which these were found."""

    mean: float
    sem: float
    low: float
    high: float
    clusters: Clusters


def spread(n_windows: int, count: int) -> NDArray[np.int64]:
    """Numbers of `count` windows, spread evenly over all."""
    return np.linspace(0, n_windows - 1, min(count, n_windows)).astype(np.int64)


def equal_clusters(of: NDArray[np.int64]) -> float:
    """How many clusters of equal size have as much information as these."""
    sizes = np.unique(of, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def documents_of(
    windows: TokenWindows, chosen: NDArray[np.int64], meta: Mapping[str, Any]
) -> NDArray[np.int64] | None:
    """The document at the middle of each chosen window, counted from the beginning of the split; (windows,)
    int64.

    None where meta.json does not say which token ends a document.
    """
    end_of_text, tokens = meta.get("end_of_text"), windows.tokens
    if not isinstance(end_of_text, int):
        return None
    middles = chosen * windows.length + windows.length // 2
    ends = np.concatenate(
        [
            np.flatnonzero(tokens[first : first + SLICE] == end_of_text) + first
            for first in range(0, tokens.size, SLICE)
        ]
    )
    # an end of text belongs to the document that it ends
    return np.searchsorted(ends, middles).astype(np.int64)


def stretches(n_windows: int) -> NDArray[np.int64]:
    """Windows in order, in stretches of equal length: (windows,) int64."""
    count = min(max(FEWEST_BLOCKS, min(BLOCKS, n_windows // BLOCK_WINDOWS)), n_windows)
    return np.arange(n_windows) * count // max(n_windows, 1)


def interval(values: NDArray[np.float64], documents: NDArray[np.int64] | None) -> Interval | None:
    """The interval of the mean of values (windows,), in the order of the text; None for a single window,
    which has no spread.
    """
    if values.size < 2:
        return None
    found = [_jackknife(values, Clusters("blocks", stretches(values.size)))]
    if documents is not None and equal_clusters(documents) >= FEWEST_DOCUMENTS:
        found.append(_jackknife(values, Clusters("documents", documents)))
    return max(found, key=lambda each: each.high - each.low)


def _jackknife(values: NDArray[np.float64], clusters: Clusters) -> Interval:
    _, of = np.unique(clusters.of, return_inverse=True)
    sizes = np.bincount(of).astype(np.float64)
    mean = float(values.mean())
    # the mean without a cluster moves from that of all by this much; no difference of large sums, so that
    # equal values have no error
    moves = np.bincount(of, weights=values - mean) / (sizes.sum() - sizes)
    sem = math.sqrt((sizes.size - 1) / sizes.size * float((moves**2).sum()))
    half = students_t(max(equal_clusters(of) - 1, 1.0)) * sem
    return Interval(mean, sem, mean - half, mean + half, clusters)


def students_t(degrees: float) -> float:
    """Two-sided 95% quantile of Student's t (Abramowitz and Stegun 26.7.5): to 0.1% from 4 degrees on;
    exact at 1.
    """
    if degrees == 1:
        return math.tan(math.pi * LEVEL / 2)
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * degrees**4)
    )
