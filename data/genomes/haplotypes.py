"""Haplotypes of a stretch of a genome, from whichever file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def _none() -> NDArray[np.float64]:
    return np.zeros((0, 2))


@dataclass(frozen=True)
class Haplotypes:
    """positions (S,): 0-based bp of sites, sorted. alleles (S, n): allele numbers, 0 the ancestral one, none
    missing. length: bp. contig: its name, empty where the file has none. missing: intervals (K, 2) of bases
    that were left out, as a genotype is missing there. gaps: intervals (K, 2) of which the file says nothing.
    notes: a line for each thing that the reader decided.
    """

    positions: NDArray[np.float64]
    alleles: NDArray[np.uint8]
    length: float
    contig: str = ""
    missing: NDArray[np.float64] = field(default_factory=_none)
    gaps: NDArray[np.float64] = field(default_factory=_none)
    notes: tuple[str, ...] = ()


def bases_at(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The interval (K, 2) of the one base at each position (K,)."""
    begin = np.floor(positions)
    return np.stack([begin, begin + 1], axis=1)
