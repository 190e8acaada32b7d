"""Features of haplotype pairs: the site frequency spectrum of the sites where the two differ, and of those
where they agree, in windows of several lengths along the genome.

P pairs, 2 channels (sites where the pair differs, where it agrees), S scales, W windows, n samples, which is
also the number of bins: a site with f carriers among the samples counts in bin f of its channel. Bin 0 of a
channel counts the sites of the other channel and those without carrier.

    positions, genotypes = sites_of(tskit.load("ts_00000000.trees"))
    x = pair_features(positions, genotypes, np.array([[0, 1]]), 2000, 1_000_000)      # (1, 2, 4, 500, n)

Window k of scale m begins where window k of scale 1 does and spans m of these, as far as the sequence goes:
everything follows from the counts of scale 1, and their sums from the first window on are what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALES = (2, 8, 32, 64)  # lengths of windows, in units of the window
LARGEST_COUNT = int(np.finfo(np.float16).max)  # of a window of any scale
EXACT_COUNT = 2048  # up to which float16 has every count
Positions = NDArray[np.float64]
Genotypes = NDArray[np.uint8]
Intervals = NDArray[np.integer[Any]]


def sites_of(ts: Any) -> tuple[Positions, Genotypes]:
    """Positions (sites,) and allele numbers (sites, n) of a tskit.TreeSequence; 255: missing."""
    genotypes = ts.genotype_matrix()
    return ts.sites_position, np.where(genotypes < 0, 255, genotypes).astype(np.uint8)


def window_edges(window: float, length: float) -> NDArray[np.float64]:
    """Bounds of the windows (W + 1,), the last of which may be shorter."""
    return np.minimum(np.arange(math.ceil(length / window) + 1) * float(window), length)


def merged(intervals: Intervals) -> Intervals:
    """Intervals (K, 2) in order, those that touch or overlap made one; empty ones left out."""
    intervals = intervals.reshape(-1, 2)
    intervals = intervals[intervals[:, 0] < intervals[:, 1]]
    if not intervals.size:
        return intervals
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reached = np.maximum.accumulate(intervals[:, 1])
    starts = np.flatnonzero(np.append(True, intervals[1:, 0] > reached[:-1]))
    return np.stack([intervals[starts, 0], np.maximum.reduceat(intervals[:, 1], starts)], axis=1)


def missing_in(intervals: Intervals, window: float, length: float) -> NDArray[np.float64]:
    """Base pairs of each window (W,) that lie in intervals (K, 2), which are [begin, end)."""
    edges = window_edges(window, length)
    bounds = merged(intervals)
    if not bounds.size:
        return np.zeros(edges.size - 1)
    spans = np.diff(bounds, axis=1)
    up_to = np.cumsum(spans)[:, None] - np.append(spans, np.zeros_like(spans), axis=1)
    return np.diff(np.interp(edges, bounds.ravel(), up_to.ravel()))


def is_inside(positions: Positions, intervals: Intervals) -> NDArray[np.bool_]:
    """Which positions lie in one of the intervals (K, 2)."""
    bounds = merged(intervals)
    if not bounds.size:
        return np.zeros(positions.size, dtype=bool)
    before = np.searchsorted(bounds[:, 0], positions, side="right") - 1
    return (before >= 0) & (positions < bounds[before, 1])


def kept_sites(
    positions: Positions, genotypes: Genotypes, length: float, missing: Intervals | None = None
) -> tuple[Positions, Genotypes]:
    """The sites that are counted: of two alleles and no missing one, not carried by all samples, before
    `length`, and outside the intervals `missing`.
    """
    keep = (genotypes <= 1).all(axis=1) & (positions < length)
    keep &= genotypes.sum(axis=1, dtype=np.int64) < genotypes.shape[1]
    if missing is not None:
        keep &= ~is_inside(positions, missing)
    return positions[keep], genotypes[keep]


def counts_of(
    positions: Positions,
    genotypes: Genotypes,
    pairs: NDArray[np.integer[Any]],
    window: float,
    length: float,
    scales: Sequence[int] = SCALES,
) -> NDArray[np.uint16]:
    """Counts of kept sites in each window of scale 1, (P, 2, W, n), for pairs (P, 2) of sample numbers.

    Raises ValueError where a window of the largest scale holds more sites than float16 can count.
    """
    n_pairs, n_samples = len(pairs), genotypes.shape[1]
    edges = window_edges(window, length)
    n_windows = edges.size - 1
    place = np.searchsorted(edges, positions, side="right") - 1
    carriers = genotypes.sum(axis=1, dtype=np.int64)
    all_sites = np.bincount(place * n_samples + carriers, minlength=n_windows * n_samples)
    all_sites = all_sites.reshape(n_windows, n_samples)
    up_to = np.append(0, np.cumsum(all_sites.sum(axis=1)))
    if (up_to[_ends(n_windows, max(scales))] - up_to[:-1]).max(initial=0) > LARGEST_COUNT:
        raise ValueError(f"more than {LARGEST_COUNT:,} sites in a window of the largest scale")
    haplotypes = np.ascontiguousarray(genotypes.T)
    pair, site = np.nonzero(haplotypes[pairs[:, 0]] != haplotypes[pairs[:, 1]])
    bins = (pair * n_windows + place[site]) * n_samples + carriers[site]
    counts = np.empty((n_pairs, 2, n_windows, n_samples), dtype=np.uint16)
    differing = np.bincount(bins, minlength=n_pairs * n_windows * n_samples)
    differing = differing.reshape(n_pairs, n_windows, n_samples)
    of_the_pair = differing.sum(axis=2)
    counts[:, 0] = differing
    counts[:, 0, :, 0] = all_sites.sum(axis=1) - of_the_pair
    np.subtract(all_sites, differing, out=counts[:, 1], casting="unsafe")
    counts[:, 1, :, 0] += of_the_pair.astype(np.uint16)
    return counts


def _ends(n_windows: int, scale: int) -> NDArray[np.int64]:
    """For each window of a scale, the number of the first window of scale 1 after it (W,)."""
    return np.minimum(np.arange(n_windows) + scale, n_windows)


def cumulated(counts: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Counts (..., W, n) of each window and all before it, which wrap around: differences are right."""
    return np.cumsum(counts, axis=-2, dtype=np.uint16)


def over_scales(up_to: NDArray[np.uint16], scales: Sequence[int] = SCALES) -> NDArray[np.uint16]:
    """Counts of the windows of all scales (..., S, W, n), from `cumulated` ones (..., W, n)."""
    n_windows = up_to.shape[-2]
    last = np.stack([_ends(n_windows, scale) - 1 for scale in scales])
    sums = np.take(up_to, last, axis=-2)
    sums[..., 1:, :] -= up_to[..., None, :-1, :]
    return sums


def missing_shares(
    missing: NDArray[np.number[Any]], window: float, length: float, scales: Sequence[int] = SCALES
) -> NDArray[np.float32]:
    """Missing share of the windows of all scales (..., S, W), from the missing bp of those of scale 1
    (..., W).
    """
    edges = window_edges(window, length)
    n_windows = edges.size - 1
    up_to = np.zeros((*missing.shape[:-1], n_windows + 1))
    np.cumsum(missing, axis=-1, out=up_to[..., 1:])
    ends = np.stack([_ends(n_windows, scale) for scale in scales])
    shares = (up_to[..., ends] - up_to[..., None, :-1]) / (edges[ends] - edges[:-1])
    return shares.astype(np.float32)


def with_missing(x: NDArray[Any], shares: NDArray[np.float32]) -> None:
    """Write missing shares (..., S, W) into bin 0 of features (..., 2, S, W, n), where it says nothing else:
    exp(share) in channel 0, exp(1 - share) in channel 1.
    """
    x[..., 0, :, :, 0] = np.exp(shares).astype(np.float16)
    x[..., 1, :, :, 0] = np.exp(1 - shares).astype(np.float16)


def as_input(sums: NDArray[np.uint16], shares: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """What the network reads: log1p, in float32, of features as data hold them in float16.

    sums: counts (..., 2, S, W, n). shares: as `with_missing`.
    """
    if sums.max(initial=0) <= EXACT_COUNT:
        x = sums.astype(np.float32)
    else:
        x = sums.astype(np.float16).astype(np.float32)
    if shares is not None:
        with_missing(x, shares)
    return np.log1p(x, out=x)


def pair_features(
    positions: Positions,
    genotypes: Genotypes,
    pairs: NDArray[np.integer[Any]],
    window: float,
    length: float,
    scales: Sequence[int] = SCALES,
    missing: Intervals | None = None,
) -> NDArray[np.float16]:
    """Features as data hold them (P, 2, S, W, n), float16 and without log1p, of pairs (P, 2) of sample
    numbers in the first `length` bp.

    positions, genotypes: of `sites_of`. missing: intervals (K, 2) that cannot be seen; their sites are left
    out, and bin 0 says how much is missing, also where K is 0. Raises ValueError.
    """
    positions, genotypes = kept_sites(positions, genotypes, length, missing)
    counts = counts_of(positions, genotypes, pairs, window, length, scales)
    x = over_scales(cumulated(counts), scales).astype(np.float16)
    if missing is not None:
        with_missing(x, missing_shares(missing_in(missing, window, length), window, length, scales))
    return x


def inference_features(
    positions: Positions,
    genotypes: Genotypes,
    pairs: NDArray[np.integer[Any]],
    window: float,
    length: float,
    scales: Sequence[int] = SCALES,
    missing: Intervals | None = None,
) -> NDArray[np.float32]:
    """As `pair_features`, but as the network reads them: float32 after log1p; without `missing` bin 0 is 0,
    as sites that no sample carries cannot be seen in sequenced genomes.
    """
    positions, genotypes = kept_sites(positions, genotypes, length, missing)
    counts = counts_of(positions, genotypes, pairs, window, length, scales)
    counts[..., 0] = 0
    shares = None
    if missing is not None:
        shares = missing_shares(missing_in(missing, window, length), window, length, scales)
    return as_input(over_scales(cumulated(counts), scales), shares)
