"""Haplotypes of a stretch of a genome, from whichever file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def _none() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True)
class Haplotypes:
    """positions (S,): 0-based bp of sites, sorted. alleles (S, n): allele numbers, 0 the ancestral one, none
    missing. length: bp. contig: its name, empty where the file has none. missing: positions of sites that
    were left out, as a genotype is missing there. notes: a line for each thing that the reader decided.
    """

    positions: NDArray[np.float64]
    alleles: NDArray[np.uint8]
    length: float
    contig: str = ""
    missing: NDArray[np.float64] = field(default_factory=_none)
    notes: tuple[str, ...] = ()
