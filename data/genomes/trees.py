"""Haplotypes, and the true times of their pairs, from a tree sequence (tskit's .trees)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.genomes.features import sites_of
from data.genomes.haplotypes import Haplotypes, bases_at
from data.genomes.inputs import SUFFIXES
from data.genomes.targets import mean_times
from data.genomes.tree_file import MAGIC
from errors import UserError

MISSING = 255
MOST_DISTANCES = 1 << 24  # between samples in all windows, that are computed together
UNCALIBRATED = "uncalibrated"  # tskit's word for times that are no generations


def is_tree_sequence(path: Path) -> bool:
    """By its name, or its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def load_trees(path: Path) -> Any:
    """A tskit.TreeSequence. Raises UserError."""
    import tskit

    try:
        return tskit.load(path)
    except (tskit.FileFormatError, tskit.LibraryError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no tree sequence that can be read: {error}") from None


def read_trees(path: Path, n_haplotypes: int, drop_missing: bool) -> tuple[Haplotypes, Any]:
    """Its first samples, and the tree sequence of them alone. Raises UserError."""
    ts = load_trees(path)
    notes = []
    if ts.num_samples < n_haplotypes:
        raise UserError(
            f"{path}: the model reads {n_haplotypes} haplotypes and the file has {ts.num_samples}; take a"
            " model of fewer samples"
        )
    if ts.num_samples > n_haplotypes:
        notes.append(f"the first {n_haplotypes} of {ts.num_samples} samples are read: the model's number")
        ts = ts.simplify(ts.samples()[:n_haplotypes])
    positions, alleles = sites_of(ts)
    is_missing = (alleles == MISSING).any(axis=1)
    if is_missing.any():
        first = positions[is_missing][0]
        if not drop_missing:
            raise UserError(
                f"{path}: genotypes are missing at {is_missing.sum():,} sites, the first at {first:g};"
                " --drop_missing leaves such sites out"
            )
        notes.append(f"{is_missing.sum():,} sites with missing genotypes are left out")
    kept, missing = ~is_missing, bases_at(positions[is_missing])
    length = ts.sequence_length
    haplotypes = Haplotypes(positions[kept], alleles[kept], length, "", missing, gaps_of(ts), tuple(notes))
    return haplotypes, ts


def gaps_of(ts: Any) -> NDArray[np.float64]:
    """Intervals (K, 2) without a tree, as masks leave them."""
    found = [tree.interval for tree in ts.trees() if tree.num_edges == 0]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def true_times(
    ts: Any, pairs: NDArray[np.int64], window: int
) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """ln of the mean times of pairs in all windows (P, windows), and notes; None where they are not known."""
    if ts.time_units == UNCALIBRATED:
        return None, ("the times of the tree sequence are not calibrated: nothing to compare with",)
    windows = math.ceil(ts.sequence_length / window)
    together = max(1, math.isqrt(MOST_DISTANCES // windows) // 2)  # pairs, of twice as many samples
    parts = []
    try:
        for first in range(0, len(pairs), together):
            part = pairs[first : first + together]
            parts.append(np.log(mean_times(ts, part, window, ts.sequence_length)))
    except ValueError as error:
        return None, (f"the true times are not known: {error}",)
    return np.concatenate(parts), ()
