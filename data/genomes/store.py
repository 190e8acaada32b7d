"""A prepared set of genomes on disk: haplotype pairs of tree sequences, each an example.

    genomes = open_genomes(Path("data/datasets/processed"))
    genomes.meta.n_windows, len(genomes.train)
    example = genomes.train.example(0)          # x (2, S, W, n) and y (W,), both float16

The folder holds, for each split (`train`, `test`), shards of compressed examples, an index with the place of
each, and the files that they are from; meta.json is written last and has the checksums. An example is stored
as sums of its counts in windows of scale 1, of which those of all scales are differences
(data/genomes/features.py).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from data.genomes.features import cumulated, missing_shares, over_scales, with_missing
from errors import UserError
from files import TRANSIENT_ERRORS, load_json

FORMAT = 2
KIND = "genomes"
META, INDEX, FILES = "meta.json", "index.npy", "files.json"
SPLITS = ("train", "test")
ENTRY = np.dtype(
    [
        ("shard", "<i4"),
        ("file", "<i4"),
        ("offset", "<i8"),
        ("size", "<i4"),
        ("first", "<i4"),
        ("second", "<i4"),
    ]
)
MOST_OVERHEAD = 1024  # bytes that compression may add to an example
LEVEL = 1  # of zstandard: higher ones save little of such sparse counts
LARGEST = 1 << 30  # elements of the features of an example, beyond which meta.json is taken for damaged
_decompressors = threading.local()


@dataclass(frozen=True)
class Layout:
    """What an example consists of. window_size, sequence_length: bp. multipliers: scales of the windows.
    masked: whether bin 0 says how much of a window is missing.
    """

    window_size: int
    sequence_length: int
    n_samples: int
    multipliers: tuple[int, ...]
    masked: bool

    @property
    def n_windows(self) -> int:
        return -(-self.sequence_length // self.window_size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the features of an example: (2, S, W, n)."""
        return 2, len(self.multipliers), self.n_windows, self.n_samples

    @property
    def stored_bytes(self) -> int:
        """Of an example that is not compressed."""
        return self.n_windows * (4 * self.n_samples + (6 if self.masked else 2))

    def encode(
        self, counts: NDArray[np.uint16], y: NDArray[np.float16], missing: NDArray[Any] | None
    ) -> bytes:
        """counts of scale 1 (2, W, n); y: ln times (W,); missing: bp of each window (W,), of a masked set."""
        parts = [cumulated(counts).astype("<u2").tobytes(), y.astype("<f2").tobytes()]
        if missing is not None:
            parts.append(missing.astype("<u4").tobytes())
        return b"".join(parts)

    def decode(self, raw: bytearray) -> Examples:
        """The examples (N, ...) that follow each other in `raw`."""
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, self.stored_bytes)
        ends = np.cumsum([4 * self.n_windows * self.n_samples, 2 * self.n_windows])
        up_to, y, missing = (np.ascontiguousarray(part) for part in np.split(rows, ends, axis=1))
        return Examples(
            up_to.view("<u2").reshape(-1, 2, self.n_windows, self.n_samples),
            y.view("<f2"),
            missing.view("<u4") if self.masked else None,
        )

    def features(self, examples: Examples) -> NDArray[np.float16]:
        """Features as `pair_features` has them (N, 2, S, W, n)."""
        x = over_scales(examples.up_to, self.multipliers).astype(np.float16)
        shares = self.shares(examples.missing)
        if shares is not None:
            with_missing(x, shares)
        return x

    def shares(self, missing: NDArray[Any] | None) -> NDArray[np.float32] | None:
        """Missing shares (..., S, W) of the windows of all scales, from the bp of those of scale 1."""
        if missing is None:
            return None
        return missing_shares(missing, self.window_size, self.sequence_length, self.multipliers)


@dataclass(frozen=True)
class Examples:
    """up_to: counts of scale 1, `cumulated` (N, 2, W, n); y: ln mean TMRCA (N, W); missing: bp (N, W), None
    without a mask.
    """

    up_to: NDArray[np.uint16]
    y: NDArray[np.float16]
    missing: NDArray[np.uint32] | None


@dataclass(frozen=True)
class Example:
    """One pair. x (2, S, W, n): counts before log1p; y: ln mean TMRCA (W,); file: of the tree sequence, in
    the folder that was prepared; pair: sample numbers; missing: shares (S, W), None without a mask.
    """

    x: NDArray[np.float16]
    y: NDArray[np.float16]
    scenario: str
    file: str
    pair: tuple[int, int]
    missing: NDArray[np.float32] | None


@dataclass(frozen=True)
class GenomeMeta(Layout):
    """What meta.json says. scenarios: files of each in `train` and `test`. splits: of each split, counts of
    files, examples and shards, and a checksum. settings: what the set was made with. duplicates: files that
    were there under another name too. errors: files that were left out, and why.
    """

    scenarios: dict[str, dict[str, int]]
    splits: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    duplicates: list[list[str]]
    errors: list[list[str]]

    def identity(self) -> dict[str, Any]:
        """What distinguishes the set from others, in the form of data.bins.identity_of."""
        found = {}
        for name, split in {"train": "train", "val": "test"}.items():
            stated = self.splits[split]
            found[name] = {"tokens": stated["examples"] * self.n_windows, "sha256": stated["sha256"]}
        return found


class Genomes:
    """The examples of one split."""

    def __init__(self, folder: Path, meta: GenomeMeta, check: bool = True) -> None:
        """folder: of the split. check: compare the checksum of index and files. Raises UserError."""
        self.folder, self.meta = folder, meta
        try:
            self.index = np.load(folder / INDEX, mmap_mode="r", allow_pickle=False)
            self.files = load_json(folder / FILES)
            text = (folder / FILES).read_text()
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from None
        if not (self.index.dtype == ENTRY and self.index.ndim == 1 and isinstance(self.files, list)):
            raise _damaged(folder, f"{INDEX} or {FILES} is not of this format")
        stated = meta.splits[folder.name]
        if len(self.index) != stated["examples"] or len(self.files) != stated["files"]:
            raise _damaged(folder, f"it holds another number of examples or files than {META} says")
        if check and split_sha256(self.index, text, stated["shard_sha256"]) != stated["sha256"]:
            raise _damaged(folder, f"{INDEX} and {FILES} have another SHA-256 than {META} says")
        self.shards: dict[int, int] = {}  # file descriptors
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    def __del__(self) -> None:
        for descriptor in getattr(self, "shards", {}).values():
            os.close(descriptor)

    def _shard(self, number: int) -> int:
        with self.lock:
            if number not in self.shards:
                self.shards[number] = os.open(self.folder / shard_name(number), os.O_RDONLY)
            return self.shards[number]

    def _raw(self, shard: int, offset: int, size: int) -> bytes:
        """An example as `Layout.encode` made it. Raises UserError."""
        try:
            expected = self.meta.stored_bytes
            if not 0 < size <= 2 * expected + MOST_OVERHEAD:
                raise zstandard.ZstdError("the index is damaged")
            packed = os.pread(self._shard(shard), size, offset)
            if len(packed) < size or zstandard.frame_content_size(packed) != expected:
                raise zstandard.ZstdError("it is no whole example")
            return _decompressor().decompress(packed)
        except zstandard.ZstdError as error:
            raise _damaged(self.folder / shard_name(shard), f"at byte {offset:,}: {error}") from None
        except OSError as error:
            if error.errno in TRANSIENT_ERRORS:  # nothing for the user to fix: the chain tries again
                raise
            raise _damaged(self.folder / shard_name(shard), error.strerror) from None

    def read(self, numbers: NDArray[np.integer[Any]]) -> Examples:
        """The examples of these numbers (N,). Raises UserError."""
        entries = self.index[numbers]
        places = zip(*(entries[name].tolist() for name in ("shard", "offset", "size")), strict=True)
        return self.meta.decode(bytearray().join(self._raw(*place) for place in places))

    def example(self, number: int) -> Example:
        """Raises UserError."""
        found, entry = self.read(np.array([number])), self.index[number]
        shares, file = self.meta.shares(found.missing), self.files[entry["file"]]
        return Example(
            self.meta.features(found)[0],
            found.y[0],
            str(file["scenario"]),
            str(file["path"]),
            (int(entry["first"]), int(entry["second"])),
            None if shares is None else shares[0],
        )


@dataclass(frozen=True)
class GenomeSplits:
    """A prepared set."""

    folder: Path
    meta: GenomeMeta
    train: Genomes
    test: Genomes

    def identity(self) -> dict[str, Any]:
        """As GenomeMeta.identity."""
        return self.meta.identity()


def split_sha256(index: NDArray[Any], files: str, shards: Iterable[str]) -> str:
    """Checksum of a split. files: text of files.json; shards: checksums of the shards, in order."""
    digest = hashlib.sha256(index.tobytes())
    for text in (*shards, files):
        digest.update(text.encode())
    return digest.hexdigest()


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.bin"


def is_genomes(folder: Path) -> bool:
    """Whether a folder holds a prepared set of genomes."""
    try:
        return bool(_content(folder).get("kind") == KIND)
    except UserError:
        return False


def _content(folder: Path) -> dict[str, Any]:
    try:
        found = load_json(folder / META)
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no prepared genomes ({META} is missing): python -m data.genomes.preprocess makes"
            " them"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    if not isinstance(found, dict):
        raise _damaged(folder, f"{META} must hold a JSON object")
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    """Of this thread."""
    if not hasattr(_decompressors, "own"):
        _decompressors.own = zstandard.ZstdDecompressor()
    own: zstandard.ZstdDecompressor = _decompressors.own
    return own


def _damaged(place: Path, why: object) -> UserError:
    return UserError(f"{place} cannot be read ({why}): prepare the genomes again")


def read_meta(folder: Path) -> GenomeMeta:
    """Raises UserError."""
    found = _content(folder)
    if found.get("kind") != KIND or found.get("format") != FORMAT:
        raise UserError(
            f"{folder} holds no genomes of format {FORMAT}, but what {META} calls kind"
            f" {found.get('kind')!r:.40}, format {found.get('format')!r:.40}"
        )
    try:
        known = {field.name: found[field.name] for field in fields(GenomeMeta)}
        meta = GenomeMeta(**{**known, "multipliers": tuple(known["multipliers"])})
        _check(meta)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, f"{META}: {type(error).__name__} {error}") from None
    return meta


def _check(meta: GenomeMeta) -> None:
    """Raises ValueError, KeyError or TypeError for values that no set can have."""
    sizes = [meta.window_size, meta.sequence_length, meta.n_samples, *meta.multipliers]
    counts: list[Any] = []
    for split in SPLITS:
        counts += [meta.splits[split][name] for name in ("examples", "files", "shards")]
    if (
        not all(type(size) is int and size > 0 for size in sizes)
        or np.prod(meta.shape, dtype=float) > LARGEST
    ):
        raise ValueError("sizes of examples")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts of a split")
    for split in SPLITS:
        stated = meta.splits[split]
        if not all(isinstance(each, str) for each in [stated["sha256"], *stated["shard_sha256"]]):
            raise ValueError("sha256")
    if type(meta.masked) is not bool:
        raise ValueError("masked")


def open_genomes(folder: Path, check: bool = True) -> GenomeSplits:
    """A prepared set. check: of each split compare the checksum of index and files, which tells the parts of
    another set and damage, but for that of the shards. Raises UserError.
    """
    meta = read_meta(folder)
    return GenomeSplits(folder, meta, *(Genomes(folder / split, meta, check) for split in SPLITS))
