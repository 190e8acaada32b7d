"""Targets of the coalescence network: mean times to the most recent common ancestor (TMRCA) of haplotype
pairs in windows, and tokens for their logarithms.

P pairs, W windows. A sequence of a pair is BOS and then a token for each window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.genomes.features import window_edges

BOS = 1  # token 0 is never used
FIRST = 2  # token of the first bin
BINS = 324
VOCABULARY = FIRST + BINS
GRID = np.linspace(3.0, 17.0, BINS)  # ln generations; bin b holds GRID[b] <= v < GRID[b + 1]


def discretise(log_times: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Tokens of ln times of any shape, int64. Times beyond the grid get the bin at its end.

    Data hold float16, which must not be made from finer numbers again: these fall into other bins.
    """
    bins = np.searchsorted(GRID, log_times.astype(np.float64), side="right") - 1
    return np.clip(bins, 0, BINS - 1) + FIRST


def log_times(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The ln time that a token stands for, which is the LOWER edge of its bin. Tokens from FIRST on."""
    return GRID[tokens - FIRST]


def sequences(log_times: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """BOS and tokens (..., W + 1) of ln times (..., W)."""
    tokens = discretise(log_times)
    return np.concatenate([np.full_like(tokens[..., :1], BOS), tokens], axis=-1)


def mean_times(ts: Any, pairs: NDArray[np.integer[Any]], window: float, length: float) -> NDArray[np.float64]:
    """Span-weighted mean TMRCA in generations (P, W) of pairs (P, 2) of sample numbers, in windows of the
    first `length` bp; a last, shorter window is averaged over the part that there is.

    ts: a tskit.TreeSequence. Raises ValueError where a tree has several roots.
    """
    edges = window_edges(window, length)
    if any(tree.has_multiple_roots for tree in ts.trees() if tree.interval.left < length):
        raise ValueError("its lineages have not coalesced: a tree has several roots")
    nodes = ts.samples()
    used, places = np.unique(pairs, return_inverse=True)
    breaks = edges
    if length < ts.sequence_length:
        breaks = np.append(edges, ts.sequence_length)
    # path lengths between samples, by tree: unlike ts.divergence, no sums that lose digits along the genome
    distances = ts.divergence_matrix([[node] for node in nodes[used]], windows=breaks, mode="branch")
    first, second = places.reshape(pairs.shape).T
    ages = ts.nodes_time[nodes[used]]
    return ((distances[: edges.size - 1, first, second] + ages[first] + ages[second]) / 2).T


def log_mean_times(
    ts: Any, pairs: NDArray[np.integer[Any]], window: float, length: float
) -> NDArray[np.float16]:
    """ln of `mean_times`, float16 (P, W), as data hold it. Raises ValueError."""
    return np.log(mean_times(ts, pairs, window, length)).astype(np.float16)
