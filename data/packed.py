"""Rows of packed documents as a batch source, and the index that says which documents each row is made of.

The index is a folder of blocks of BLOCK_ROWS rows. A block is written as a whole, is never changed, and holds
what is needed to go on after it, so that a longer training appends to the index of a shorter one. A block
that is missing or damaged is made again, to the same bits, from the one before it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.mixture import EPOCHS
from data.batch import Batch
from data.bins import Splits, TokenWindows, ends_of
from data.mixture import MixtureSource
from data.order import SampleOrder
from data.packing import Arrivals, Packed, Packer
from data.token_source import TokenSource
from errors import UserError
from files import TRANSIENT_ERRORS, write_atomically

FORMAT = 1
BLOCK_ROWS = 1 << 13
SUFFIX = ".packed"
HELD = 4  # blocks in memory
DIGEST = hashlib.sha256().digest_size
ABANDONED_SECONDS = 3600.0  # age of a temporary file that a killed job must have left


@dataclass(frozen=True)
class Packing:
    """buffer: documents that wait to be placed. end_of_text: the token after a document, with which those of
    a row begin. folder: of the index.
    """

    buffer: int
    end_of_text: int
    folder: Path


@dataclass(frozen=True)
class Documents:
    """begins: place of each document's first token; lengths: its tokens and the one that begins it, (N,)."""

    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, tokens: NDArray[Any], end_of_text: int, name: str = "the data") -> Documents:
        """Those of a bin; documents without tokens are left out. Raises UserError where there are none."""
        ends = ends_of(tokens, end_of_text)
        if not ends.size:
            raise UserError(
                f"--packing best_fit: {name} holds no end-of-text token ({end_of_text}), so nothing says"
                " where documents begin"
            )
        if ends[-1] != tokens.size - 1:
            ends = np.append(ends, tokens.size)
        begins = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - begins + 1
        whole = lengths > 1
        if not whole.any():
            raise UserError(f"--packing best_fit: {name} holds no documents, only end-of-text tokens")
        return cls(begins[whole], lengths[whole])


@dataclass(frozen=True)
class Block:
    """Some rows. begins, kept, dropped: of each piece, the place of its first token after the one that begins
    it; its tokens, that one included; tokens of its document that are lost. ends: for each row, the piece
    after its last. arrived, waiting: state of the packer after it. documents: of the whole split.
    """

    begins: NDArray[np.int64]
    kept: NDArray[np.int64]
    dropped: NDArray[np.int64]
    ends: NDArray[np.int64]
    waiting: NDArray[np.int64]
    arrived: int
    documents: int

    def pieces(self, row: int) -> tuple[list[int], list[int]]:
        """`begins` and `kept` of one row's pieces."""
        first = int(self.ends[row - 1]) if row else 0
        chosen = slice(first, int(self.ends[row]))
        return self.begins[chosen].tolist(), self.kept[chosen].tolist()

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        return self.begins, self.kept, self.dropped, self.ends, self.waiting

    def to_bytes(self, key: bytes) -> bytes:
        head = [self.arrived, self.documents, *(part.size for part in self.arrays)]
        body = np.concatenate([head, *self.arrays]).astype("<i8").tobytes()
        return hashlib.sha256(key + body).digest() + body

    @classmethod
    def from_bytes(cls, raw: bytes, key: bytes) -> Block | None:
        """None for what is not, to the bit, a block of this key."""
        digest, body = raw[:DIGEST], raw[DIGEST:]
        if hashlib.sha256(key + body).digest() != digest:
            return None
        numbers = np.frombuffer(body, dtype="<i8")
        arrived, documents, *sizes = numbers[:7].tolist()
        begins, kept, dropped, ends, waiting = np.split(numbers[7:], np.cumsum(sizes)[:-1])
        return cls(begins, kept, dropped, ends, waiting, arrived, documents)


class RowIndex:
    """The rows of one dataset. name: of its files, by all that decides on the rows.

    Every process may read it, also beyond what is on disk: such rows are made in memory.
    """

    def __init__(
        self, windows: TokenWindows, packing: Packing, seed: int, identity: Mapping[str, Any], called: str
    ) -> None:
        """seed: of the order of documents. identity: of the split, as data.bins.identity_of has it. called:
        what an error calls the dataset.
        """
        self.windows, self.packing, self.seed, self.called = windows, packing, seed, called
        self.row = windows.length + 1
        text = json.dumps(
            {
                "format": FORMAT,
                "data": dict(identity),
                "end_of_text": packing.end_of_text,
                "row": self.row,
                "buffer": packing.buffer,
                "seed": seed,
            },
            sort_keys=True,
        )
        self.name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.held: dict[int, Block] = {}
        self.made_documents: Documents | None = None
        self.ahead: tuple[int, Packer] | None = None  # a packer, and the block that it would make next

    @property
    def documents(self) -> Documents:
        """Found in the bin when they are first needed. Raises UserError."""
        if self.made_documents is None:
            self.made_documents = Documents.of(self.windows.tokens, self.packing.end_of_text, self.called)
        return self.made_documents

    def path(self, number: int) -> Path:
        return self.packing.folder / f"{self.name}_{number:05}{SUFFIX}"

    def _key(self, number: int) -> bytes:
        return f"{self.name} {number} ".encode()

    def _load(self, number: int) -> Block | None:
        """A block from disk; None where it is not there or is damaged."""
        try:
            return Block.from_bytes(self.path(number).read_bytes(), self._key(number))
        except OSError as error:
            if error.errno in TRANSIENT_ERRORS:
                raise
            return None

    def _packer(self, number: int) -> Packer:
        """One that makes this block next. Raises UserError."""
        if self.ahead is not None and self.ahead[0] == number:
            return self.ahead[1]
        documents = self.documents
        order = SampleOrder(documents.lengths.size, self.seed)
        arrived, waiting = 0, np.empty(0, dtype=np.int64)
        if number:
            before = self.block(number - 1)
            arrived, waiting = before.arrived, before.waiting
        arrivals = Arrivals(documents.lengths, order)
        return Packer(arrivals, self.row, self.packing.buffer, arrived, waiting.tolist())

    def _make(self, number: int) -> Block:
        packer, documents = self._packer(number), self.documents
        packed: Packed = packer.pack(BLOCK_ROWS)
        self.ahead = number + 1, packer
        return Block(
            documents.begins[packed.documents],
            packed.kept,
            packed.dropped,
            packed.ends,
            np.array(packer.waiting, dtype=np.int64),
            packer.arrived,
            documents.lengths.size,
        )

    def block(self, number: int) -> Block:
        """From memory, from disk, or made."""
        first = number
        while first not in self.held and not self.path(first).exists() and first:
            first -= 1  # a loop, as very many may be missing
        for each in range(first, number + 1):
            self._hold(each, self.held.get(each) or self._load(each) or self._make(each))
        return self.held[number]

    def _hold(self, number: int, block: Block) -> None:
        self.held[number] = block
        if len(self.held) > HELD:
            del self.held[next(iter(self.held))]

    def prepare(self, rows: int) -> str:
        """Bring the index on disk to so many rows, in one process; says what it is.

        Raises UserError and OSError.
        """
        began, done = time.monotonic(), Tally()
        self.packing.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.packing.folder)
        for number in range(-(-rows // BLOCK_ROWS)):
            path, block = self.path(number), self._load(number)
            if block is None:
                done.damaged += path.exists()
                done.made += 1
                block = self._make(number)
                write_atomically(path, block.to_bytes(self._key(number)))
            self._hold(number, block)
            done.add(block, rows - number * BLOCK_ROWS)
        self.made_documents = self.ahead = None  # of no use to a training
        return done.in_words(rows, self.row, time.monotonic() - began)

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows of these numbers (N,), as batches of TokenWindows are. Raises UserError."""
        chosen = np.empty((numbers.size, self.row), dtype=self.windows.tokens.dtype)
        for number, row in zip(numbers.tolist(), chosen, strict=True):
            block = self.block(number // BLOCK_ROWS)
            begins, kept = block.pieces(number % BLOCK_ROWS)
            fill(row, self.windows.tokens, begins, kept, self.packing.end_of_text)
        return self.windows.as_batch(chosen)


def fill(row: NDArray[Any], tokens: NDArray[Any], begins: list[int], kept: list[int], first: int) -> None:
    """Write pieces into a row. begins, kept: as a Block has them; first: the token that begins each."""
    place = 0
    for begin, count in zip(begins, kept, strict=True):
        row[place] = first
        row[place + 1 : place + count] = tokens[begin : begin + count - 1]
        place += count


def remove_leftovers(folder: Path) -> None:
    """Temporary files of a process that was killed while it wrote."""
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # its writer has just renamed it
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


@dataclass
class Tally:
    """What an index is made of. documents: of the dataset; made, damaged: blocks made now, and those of
    them that had been there.
    """

    pieces: int = 0
    kept: int = 0
    dropped: int = 0
    documents: int = 0
    made: int = 0
    damaged: int = 0

    def add(self, block: Block, rows: int) -> None:
        """Count at most so many rows of a block."""
        pieces = int(block.ends[min(rows, BLOCK_ROWS) - 1])
        self.pieces += pieces
        self.kept += int(block.kept[:pieces].sum())
        self.dropped += int(block.dropped[:pieces].sum())
        self.documents = block.documents

    def in_words(self, rows: int, row: int, seconds: float) -> str:
        cropped = self.dropped / max(self.kept + self.dropped, 1)
        epochs = self.pieces / max(self.documents, 1)
        how = f"made in {seconds:.1f} s" if self.made else f"read in {seconds:.1f} s"
        again = f" ({self.damaged} blocks were damaged)" if self.damaged else ""
        return (
            f"{rows:,} rows of {row:,} tokens, {epochs:.2f} epochs of {self.documents:,} documents,"
            f" {100 * cropped:.3g}% of their tokens cropped; index {how}{again}"
        )


class PackedSource(TokenSource):
    """Rows of one dataset, in their order: sample i is row i."""

    def __init__(self, splits: Splits, packing: Packing, data_seed: int) -> None:
        """Raises UserError."""
        super().__init__(splits.train, data_seed, splits.folder, splits.meta)
        identity = self.identity()["train"]
        self.rows = RowIndex(splits.train, packing, data_seed, identity, str(splits.folder))

    def prepare(self, samples: int) -> list[str]:
        """As RowIndex.prepare, for a run of so many samples; a line for each dataset."""
        return [f"packing: {self.rows.prepare(samples)}"]

    def samples(self, step: int, first: int, count: int) -> Batch:
        return self.rows.batch(np.arange(first, first + count))

    def describe(self, first: int, count: int, more: bool) -> str:
        numbers = ", ".join(map(str, range(first, first + count)))
        return f"packed rows {numbers}{', ...' if more else ''} of the training split"


class PackedMixture(MixtureSource):
    """Rows of several datasets, which take turns as in a mixture by epochs: a dataset's samples are its rows,
    in their order.
    """

    def __init__(
        self,
        parts: Mapping[str, Splits],
        weights: Mapping[str, float],
        data_seed: int,
        identities: Mapping[str, Any],
        packing: Packing,
    ) -> None:
        """As MixtureSource."""
        windows = {name: splits.train for name, splits in parts.items()}
        meta = next(iter(parts.values())).meta
        super().__init__(windows, weights, data_seed, EPOCHS, identities, meta)
        self.rows = []
        for name, seed in zip(self.names, self.seeds, strict=True):
            train, splits = identities[name]["train"], parts[name]
            self.rows.append(RowIndex(splits.train, packing, seed, train, str(splits.folder)))

    def prepare(self, samples: int) -> list[str]:
        """As PackedSource.prepare."""
        lines = []
        for name, rows, count in zip(self.names, self.rows, self.turns.counts(samples), strict=True):
            if count:
                lines.append(f"packing of {name}: {rows.prepare(int(count))}")
        return lines

    def _places(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.turns.locate(first, count)

    def _read(self, number: int, places: NDArray[np.int64]) -> Batch:
        return self.rows[number].batch(places)

    def describe(self, first: int, count: int, more: bool) -> str:
        source, row = self._places(first, count)
        places = [f"packed row {n} of {self.names[s]}" for s, n in zip(source, row, strict=True)]
        return f"{', '.join(places)}{', ...' if more else ''}"
