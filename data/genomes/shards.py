"""One shard of a prepared set: some tree sequences as compressed examples, made in a worker process.

A shard is described by a file beside it, written after it, which has the checksums of both and the key of all
that the shard was made of; where these are right it is kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from data.genomes.features import counts_of, kept_sites, missing_in, sites_of
from data.genomes.inputs import Input, choose_pairs, crop_start, load_mask, runs
from data.genomes.store import FORMAT, LEVEL, Layout, shard_name
from data.genomes.targets import log_mean_times
from files import TRANSIENT_ERRORS, json_text, load_json, replace_atomically, sha256_of, write_json

ELEMENTS_AT_ONCE = 1 << 23  # of the counts of scale 1, which bounds a worker's memory


@dataclass(frozen=True)
class Mask:
    """Accessible bp of a chromosome: a file and, for .npz, the array in it. sha256: of the file."""

    path: str
    key: str
    sha256: str


@dataclass(frozen=True)
class Job:
    """A shard to make. folder: of its split. keep: whether one that is there may stay."""

    base: Path
    folder: Path
    number: int
    inputs: tuple[Input, ...]
    layout: Layout
    num_pairs: int
    mask: Mask | None
    keep: bool

    @property
    def key(self) -> str:
        """Of all that the shard's bytes follow from."""
        parts = {
            "format": FORMAT,
            "inputs": [asdict(each) for each in self.inputs],
            "layout": asdict(self.layout),
            "num_pairs": self.num_pairs,
            "mask": self.mask and [self.mask.key, self.mask.sha256],
        }
        return hashlib.sha256(json_text(parts).encode()).hexdigest()

    @property
    def path(self) -> Path:
        return self.folder / shard_name(self.number)

    @property
    def description(self) -> Path:
        return self.path.with_suffix(".json")


@cache
def _accessible(path: str, key: str) -> NDArray[np.bool_]:
    return load_mask(Path(path), key)


def _kept(job: Job) -> dict[str, Any] | None:
    """The description of a shard that is there and right; files that could not be read are tried again."""
    try:
        found = load_json(job.description)
        sha256 = sha256_of(job.path)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.pop("own_sha256", None) != _own_sha256(found):
        return None
    if (found["key"], found["sha256"]) != (job.key, sha256) or found["errors"]:
        return None
    return found


def _own_sha256(description: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(description).encode()).hexdigest()


@dataclass(frozen=True)
class Made:
    """What became of a shard. files, examples: how many are in it. errors: files that could not be read, and
    why. was_there: it was kept.
    """

    files: int
    examples: int
    errors: list[list[str]]
    was_there: bool

    @classmethod
    def of(cls, description: dict[str, Any], was_there: bool) -> Made:
        sizes = len(description["files"]), len(description["sizes"])
        return cls(*sizes, description["errors"], was_there)


def make_shard(job: Job) -> Made:
    """Make a shard, or keep it. Its description beside it has, in order, `files` with what is in it, `errors`
    as Made has them, and `pairs` and `sizes` (bytes) of the examples.
    """
    kept = _kept(job) if job.keep else None
    if kept is not None:
        return Made.of(kept, was_there=True)
    description: dict[str, Any] = {"key": job.key, "files": [], "errors": [], "pairs": [], "sizes": []}
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for each in job.inputs:
                for packed in _packed(job, each, description):
                    file.write(packed)
                    digest.update(packed)

    replace_atomically(job.path, write)
    description["sha256"] = digest.hexdigest()
    write_json(job.description, {**description, "own_sha256": _own_sha256(description)})
    return Made.of(description, was_there=False)


def _packed(job: Job, given: Input, description: dict[str, Any]) -> list[bytes]:
    """The examples of a tree sequence; none where it cannot be read, which the description then says."""
    import tskit

    try:
        pairs, crop = choose_pairs(job.layout.n_samples, job.num_pairs, given.seed), None
        missing = None
        if job.mask is not None:
            accessible = _accessible(job.mask.path, job.mask.key)
            length = job.layout.sequence_length
            crop = crop_start(accessible.size, length, given.seed)
            missing = runs(~accessible[crop : crop + length])
        trees = load_trees(job.base / given.path, job.layout)
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        packed = [compressor.compress(raw) for raw in encoded(trees, pairs, job.layout, missing)]
    except OSError as error:
        if error.errno in TRANSIENT_ERRORS:  # nothing for the user to fix: the job tries again
            raise
        description["errors"].append([given.path, error.strerror or str(error)])
        return []
    except (ValueError, EOFError, KeyError, tskit.FileFormatError, tskit.LibraryError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]  # tskit goes on with advice
        description["errors"].append([given.path, reason])
        return []
    description["files"].append({**asdict(given), "crop": crop})
    description["pairs"] += pairs.tolist()
    description["sizes"] += [len(each) for each in packed]
    return packed


def load_trees(path: Path, layout: Layout) -> Any:
    """A tskit.TreeSequence of the first samples, with trees and sites in the first part of the sequence, as
    the layout says. Raises ValueError, OSError, or what tskit raises for other files.
    """
    import tskit

    trees = tskit.load(path)
    if trees.sequence_length < layout.sequence_length:
        raise ValueError(
            f"it spans {trees.sequence_length:,.0f} bp, fewer than --sequence_length"
            f" {layout.sequence_length:,}"
        )
    if trees.num_samples < layout.n_samples:
        raise ValueError(f"it has {trees.num_samples} samples, fewer than {layout.n_samples}")
    if trees.sequence_length > layout.sequence_length:
        trees = trees.keep_intervals([[0, layout.sequence_length]], simplify=False)
    if trees.num_samples > layout.n_samples:
        trees = trees.simplify(trees.samples()[: layout.n_samples])
    return trees


def encoded(
    trees: Any, pairs: NDArray[np.int32], layout: Layout, missing: NDArray[np.int64] | None
) -> Iterator[bytes]:
    """The examples of pairs (P, 2) of a tree sequence, as stored but not compressed. missing: intervals
    (K, 2) that cannot be seen; targets are those of the whole sequence. Raises ValueError.
    """
    window, length, scales = layout.window_size, layout.sequence_length, layout.multipliers
    y = log_mean_times(trees, pairs, window, length)
    if not np.isfinite(y).all():
        raise ValueError("a coalescence time is 0 or not finite")
    positions, genotypes = kept_sites(*sites_of(trees), length, missing)
    missing_bp = None if missing is None else missing_in(missing, window, length)
    at_once = max(1, ELEMENTS_AT_ONCE // (2 * layout.n_windows * layout.n_samples))
    for first in range(0, len(pairs), at_once):
        part = slice(first, first + at_once)
        counts = counts_of(positions, genotypes, pairs[part], window, length, scales)
        for each, times in zip(counts, y[part], strict=True):
            yield layout.encode(each, times, missing_bp)


def remove_leftovers(folder: Path, shards: int) -> None:
    """Remove what killed workers left in the folder of a split, and shards beyond the last."""
    for path in folder.glob(".shard_*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.glob("shard_*.*"):
        number = path.stem.removeprefix("shard_")
        if number.isdigit() and int(number) >= shards and path.suffix in (".bin", ".json"):
            os.unlink(path)
