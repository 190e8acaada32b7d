"""Accessibility masks: intervals of a BED file, 0-based and half-open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.genomes.features import merged
from data.genomes.vcf import LARGEST_POSITION, lines_of, whole_number
from errors import UserError

Intervals = NDArray[np.float64]  # (N, 2): begin, end
HEADER = ("#", "track", "browser")


def read_bed(path: Path, contig: str, length: float) -> Intervals:
    """Intervals of a contig, sorted, joined where they touch, cut at its length.

    contig: "" where the sequence has no name; the file must then be about one alone. Raises UserError.
    """
    found: list[tuple[int, int]] = []
    names: set[str] = set()
    for number, line in lines_of(path):
        if not line or line.startswith(HEADER):
            continue
        words = line.split()
        begin, end = (whole_number(word, LARGEST_POSITION) for word in [*words, "", ""][1:3])
        if begin is None or end is None or begin > end:
            raise UserError(f"{path}, line {number}: no interval (name, begin, end): {line[:80]!r}")
        names.add(words[0])
        if contig in ("", words[0]):
            found.append((begin, end))
    if contig and names and contig not in names:
        raise UserError(f"{path} has no interval of {contig}, but of {', '.join(sorted(names)[:5])}")
    if not contig and len(names) > 1:
        raise UserError(f"{path} has intervals of {len(names)} contigs, and the sequence has no name")
    intervals = np.array(found, dtype=np.float64).reshape(-1, 2)
    return merged(np.clip(intervals, 0, length)).astype(np.float64)


def complement(intervals: Intervals, length: float) -> Intervals:
    """What sorted intervals without overlap leave of [0, length)."""
    edges = np.concatenate([[0.0], intervals.ravel(), [length]]).reshape(-1, 2)
    return edges[edges[:, 1] > edges[:, 0]]
