"""Which tree sequences are prepared, on which side of the split, with which pairs and which part of a mask:
all of it decided by the names and contents of the files and by one seed.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.find import Folders, Found, matches
from data.streams import printable
from errors import UserError
from files import sha256_of

SUFFIXES = (".trees", ".ts", ".tsk", ".tskit")
SEED_STEP = 10007  # between the seeds of files that follow each other
MASK_KEY = "access_2L"


@dataclass(frozen=True)
class Input:
    """A tree sequence. path: below the base folder; index: its place in the list of all; scenario: its
    folder; seed: of its pairs and of its part of the mask; sha256: of the file.
    """

    path: str
    index: int
    scenario: str
    split: str
    seed: int
    sha256: str


def find_trees(base: Path, include: Sequence[str] = ()) -> tuple[list[str], Found]:
    """Paths of the tree sequences below a folder, relative to it and sorted as strings, and what was passed
    over on the way. include: patterns, of which a path must match one.
    """
    found = Found()
    paths = [os.path.relpath(path, base) for path in Folders(found).files(base)]
    paths = [path for path in paths if path.lower().endswith(SUFFIXES)]
    if include:
        others = [path for path in paths if not matches(path, include)]
        paths = sorted(set(paths) - set(others))
        for path in others:
            found.passed.add("files that match no --include", printable(path))
    return sorted(paths), found


def content_of(path: Path) -> str:
    """SHA-256 of a file; a text of its own for each file that cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        return f"{path}: {error}"


def without_copies(hashes: dict[str, str]) -> tuple[dict[str, str], list[list[str]]]:
    """The files of each content once, under the first of its names, and pairs of such a name and another.

    hashes: by path, in order.
    """
    first: dict[str, str] = {}
    copies = []
    for path, sha256 in hashes.items():
        if first.setdefault(sha256, path) != path:
            copies.append([first[sha256], path])
    return {path: sha256 for sha256, path in first.items()}, copies


def scenario_of(path: str, base: Path) -> str:
    """The folder of a file below the base folder; that one's own name for the files in it."""
    return os.path.dirname(path) or base.resolve().name


def training_files(paths: Sequence[str], train_ratio: float, seed: int) -> set[int]:
    """Places in the sorted list of the files for training, by folder: that share of each, rounded down, and
    of two files or more never all.
    """
    folders: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        folders.setdefault(os.path.dirname(path), []).append(place)
    generator = np.random.default_rng(seed)
    chosen: set[int] = set()
    for members in folders.values():
        places = np.array(members)
        generator.shuffle(places)
        count = int(np.floor(train_ratio * places.size))
        if count == places.size and count > 1:
            count -= 1
        chosen.update(places[:count].tolist())
    return chosen


def inputs_of(hashes: dict[str, str], base: Path, train_ratio: float, seed: int) -> list[Input]:
    """The files of these hashes, by path, in order."""
    chosen = training_files(list(hashes), train_ratio, seed)
    inputs = []
    for index, (path, sha256) in enumerate(hashes.items()):
        split = "train" if index in chosen else "test"
        inputs.append(Input(path, index, scenario_of(path, base), split, seed + index * SEED_STEP, sha256))
    return inputs


def choose_pairs(n_samples: int, count: int, seed: int) -> NDArray[np.int32]:
    """Distinct pairs (count, 2) of sample numbers, the smaller one first. Raises ValueError where there are
    not as many.
    """
    pairs = np.stack(np.triu_indices(n_samples, 1), axis=1).astype(np.int32)
    if len(pairs) < count:
        raise ValueError(f"{n_samples} samples have {len(pairs):,} pairs, fewer than --num_pairs {count:,}")
    return pairs[np.random.default_rng(seed).choice(len(pairs), size=count, replace=False)]


def crop_start(size: int, length: int, seed: int) -> int:
    """Where a part of `length` begins in a mask of `size` bp, anywhere that it fits. Raises ValueError."""
    if size < length:
        raise ValueError(f"the mask has {size:,} bp, fewer than --sequence_length {length:,}")
    return int(np.random.default_rng(seed).integers(0, size - length + 1))


def runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Intervals (K, 2), [begin, end), in which a mask holds."""
    steps = np.diff(mask.astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)


def load_mask(path: Path, key: str) -> NDArray[np.bool_]:
    """Which bp can be seen (True), from an array of a .npz file, or a .npy file. Raises UserError."""
    try:
        content: Any = np.load(path, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            if key not in content.files:
                raise UserError(
                    f"--mask_key {key}: {path} has no such array, but {', '.join(content.files) or 'none'}"
                )
            content = content[key]
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no .npz or .npy file of numbers"
        raise UserError(f"--bitmask {path} cannot be read: {why}") from None
    if content.ndim != 1 or not (content.dtype == bool or np.isin(content, (0, 1)).all()):
        raise UserError(
            f"--bitmask {path} must hold a row of true and false, not {content.dtype} {content.shape}"
        )
    return content.astype(bool)
