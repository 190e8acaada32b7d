"""What is made of decoded times: posterior mean and interval of each window, their accuracy against true
times, and the correction by a mutation rate.

Shapes: R replicates, P pairs, W windows. Times are ln generations, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errors import UserError

Array = NDArray[np.float64]
HALF_WIDTH = 2.0  # of an interval, in standard deviations of the replicates


@dataclass(frozen=True)
class Posterior:
    """Of replicates, each (P, W)."""

    mean: Array
    sd: Array
    low: Array
    high: Array


def posterior(ln_times: Array) -> Posterior:
    """ln_times (R, P, W). The interval is the mean +- 2 standard deviations (ddof 0)."""
    mean, sd = ln_times.mean(0), ln_times.std(0)
    return Posterior(mean, sd, mean - HALF_WIDTH * sd, mean + HALF_WIDTH * sd)


def mean_time(ln_times: Array) -> Array:
    """Mean over replicates of the times themselves, in generations, (R, ...) -> (...)."""
    return np.exp(ln_times).mean(0)


def mse_of_pairs(mean: Array, truth: Array) -> Array:
    """Mean squared error over the windows of each pair, (P,)."""
    return ((mean - truth) ** 2).mean(-1)


def pearson(a: Array, b: Array) -> float:
    """Correlation of all values; NaN where one of them is constant."""
    return float(pearson_of_pairs(a.reshape(1, -1), b.reshape(1, -1))[0])


def pearson_of_pairs(a: Array, b: Array) -> Array:
    """Correlation over the windows of each pair, (P,); NaN where one of the two is constant."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / scale


def differences(haplotypes: NDArray[np.integer], pairs: NDArray[np.integer]) -> NDArray[np.int64]:
    """Sites where the two haplotypes of each pair have different alleles, (P,). haplotypes (sites, n) of
    allele numbers, pairs (P, 2).
    """
    counts = [np.count_nonzero(haplotypes[:, a] != haplotypes[:, b]) for a, b in pairs]
    return np.array(counts, dtype=np.int64)


def sampled_correction(
    ln_times: Array,
    counts: NDArray[np.int64],
    mutation_rate: float,
    available: Array,
    generator: np.random.Generator,
) -> Array:
    """ln_times (R, P, W) of a block, each replicate and pair moved by the logarithm of a factor drawn from
    Gamma(differences + 1, rate 2 * mutation rate * sum over windows of time * accessible bp).

    counts (P,): observed differences in the block; available (W,): accessible bp of a window. Drawn replicate
    by replicate, all pairs at once.
    """
    rates = 2 * mutation_rate * (np.exp(ln_times) * available).sum(-1)
    factors = np.stack([generator.gamma(counts + 1, 1 / rate) for rate in rates])
    return ln_times + np.log(factors)[..., None]


def deterministic_correction(
    ln_times: Array, counts: NDArray[np.int64], mutation_rate: float, available: Array
) -> Array:
    """As `sampled_correction`, by the observed over the expected differences of each pair, where those are of
    the times exp(mean ln time). A pair without differences takes the fewest that another has.

    Raises UserError where no pair has any.
    """
    if not counts.any():
        raise UserError(
            "no pair differs at any site of a block: it has no diversity to correct by;"
            " leave --mutation_rate out, or take --correction sampled"
        )
    observed = np.where(counts > 0, counts, counts[counts > 0].min())
    expected = 2 * mutation_rate * (np.exp(ln_times.mean(0)) * available).sum(-1)
    return ln_times + np.log(observed / expected)[:, None]
