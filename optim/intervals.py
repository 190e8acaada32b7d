"""Error of a mean over windows of text, which depend on each other: neighbours come from one document.

    clusters = clusters_of(splits.val, chosen, splits.meta)
    found = interval(losses, clusters)                          # losses (windows,)
    found.mean, found.low, found.high, found.sem, clusters.words()

Windows are grouped by document, or where documents are not known or too few, into long stretches. The error of the mean is the delete-one
jackknife over these groups, with Student's t: as many degrees of freedom as groups of equal size would have (Carter, Schnepel and
Steigerwald 2017, Review of Economics and Statistics 99(4)). For pairs, give the differences of two models' losses.
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
BLOCKS, FEWEST_BLOCKS = 20, 8  # stretches of text; more would be shorter, and so depend on each other; fewer would tell less of the spread
BLOCK_WINDOWS = 16  # in a stretch, where there are enough for the fewest
FEWEST_DOCUMENTS = 3.0  # as if of equal size; fewer tell nothing of the spread
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
        if self.kind == "documents":
            return f"{self.count:,} documents"
        return f"{self.count} stretches of {self.of.size / self.count:,.0f} windows"


@dataclass(frozen=True)
class Interval:
    """A mean, its standard error and the ends of its 95% interval."""

    mean: float
    sem: float
    low: float
    high: float


def spread(n_windows: int, count: int) -> NDArray[np.int64]:
    """Numbers of `count` windows, spread evenly over all."""
    return np.linspace(0, n_windows - 1, min(count, n_windows)).astype(np.int64)


def equal_clusters(of: NDArray[np.int64]) -> float:
    """How many clusters of equal size tell as much as these."""
    sizes = np.unique(of, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def document_of(windows: TokenWindows, chosen: NDArray[np.int64], end_of_text: int) -> NDArray[np.int64]:
    """The document in which the middle of each window lies, counted from the beginning of the split."""
    middles = chosen * windows.length + windows.length // 2
    tokens = windows.tokens
    ends = np.concatenate([np.flatnonzero(tokens[first:first + SLICE] == end_of_text) + first for first in range(0, tokens.size, SLICE)])
    return np.searchsorted(ends, middles).astype(np.int64)  # an end of text belongs to the document that it ends


def clusters_of(windows: TokenWindows, chosen: NDArray[np.int64], meta: Mapping[str, Any]) -> Clusters:
    """By document where meta.json tells what ends one and there are enough of them, else stretches of equal length."""
    end_of_text = meta.get("end_of_text")
    if isinstance(end_of_text, int):
        of = document_of(windows, chosen, end_of_text)
        if equal_clusters(of) >= FEWEST_DOCUMENTS:
            return Clusters("documents", of)
    count = min(max(FEWEST_BLOCKS, min(BLOCKS, chosen.size // BLOCK_WINDOWS)), chosen.size)
    return Clusters("blocks", np.arange(chosen.size) * count // max(chosen.size, 1))


def interval(values: NDArray[np.float64], clusters: Clusters) -> Interval | None:
    """Of the mean of values (windows,); None of a single cluster, which tells nothing of the spread."""
    _, of = np.unique(clusters.of, return_inverse=True)
    sizes = np.bincount(of).astype(np.float64)
    mean = float(values.mean())
    if sizes.size < 2:
        return None
    # the mean without a cluster moves from that of all by this much; no difference of large sums, so that equal values have no error
    moves = np.bincount(of, weights=values - mean) / (sizes.sum() - sizes)
    sem = math.sqrt((sizes.size - 1) / sizes.size * float((moves**2).sum()))
    half = students_t(max(equal_clusters(of) - 1, 1.0)) * sem
    return Interval(mean, sem, mean - half, mean + half)


def students_t(degrees: float) -> float:
    """Two-sided 95% quantile of Student's t (Abramowitz and Stegun 26.7.5; to 0.1% from 5 degrees on)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return (z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
            + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * degrees**4))
