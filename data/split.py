"""Encoded groups of documents to the two bins: some documents for validation, or the last part of the
text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.bins import META, TOKEN
from data.bpe import END_OF_TEXT, gpt2
from data.order import splitmix64, splitmix64_array
from errors import UserError
from files import sync, sync_folder, write_json

SPLIT_SEED = 2357
COPY_TOKENS = 1 << 21
WORD_TOKENS = 256  # in which a cut looks for the beginning of a word


def is_validation(first: int, count: int, share: float) -> NDArray[np.bool_]:
    """Whether documents first .. first + count - 1 of the corpus belong to the validation split."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return splitmix64_array(numbers ^ np.uint64(splitmix64(SPLIT_SEED))) < np.uint64(
        min(int(share * 2**64), 2**64 - 1)
    )


class Split:
    """A bin being written under a temporary name, with its counts."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.file: IO[bytes] = open(self.temporary, "wb")  # noqa: SIM115  # closed by publish or abandon
        self.sha256 = hashlib.sha256()
        self.documents = self.tokens = self.largest = 0

    def add(self, tokens: NDArray[np.uint16]) -> None:
        self.file.write(tokens.data)
        self.sha256.update(tokens.data)
        self.tokens += tokens.size
        self.largest = max(self.largest, int(tokens.max(initial=0)))

    def describe(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "largest_token": self.largest,
            "sha256": self.sha256.hexdigest(),
        }

    def publish(self) -> None:
        self.file.flush()
        sync(self.file.fileno())
        self.file.close()
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)

    def abandon(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)


def assemble(
    results: list[dict[str, Any]],
    work: Path,
    folder: Path,
    share: float,
    fraction: float | None,
    description: dict[str, Any],
) -> dict[str, Any]:
    """Join the groups into val.bin, meta.json and, last, train.bin. Raises UserError where a split stays
    empty.

    share: of the documents, for validation. fraction: instead, the share of the tokens, at the end.
    """
    val, train = splits = Split(folder / "val.bin"), Split(folder / "train.bin")
    try:
        if fraction is None:
            by_document(results, work, share, train, val)
            how: dict[str, Any] = {"split_seed": SPLIT_SEED, "val_share": share}
        else:
            by_place(results, work, fraction, train, val)
            how = {"val_fraction": fraction}
        bad_lines = description["bad_lines"] + sum(result["bad"] for result in results)
        meta = {
            **description,
            "end_of_text": END_OF_TEXT,
            **how,
            "bytes": sum(result["bytes"] for result in results),
            "bad_lines": bad_lines,
            "splits": {"train": train.describe(), "val": val.describe()},
        }
        # of an earlier preparation: it must not remain beside the new val.bin
        (folder / "train.bin").unlink(missing_ok=True)
        sync_folder(folder)
        val.publish()
        write_json(folder / META, meta)
        train.publish()
    finally:
        for split in splits:
            split.abandon()
    return meta


def encoded(
    results: list[dict[str, Any]], work: Path
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.int64]]]:
    """Of each group that holds documents: its tokens, and the place after the last token of each document."""
    for result in results:
        if result["documents"]:
            stem = work / f"{result['number']:06d}"
            yield (
                np.memmap(f"{stem}.bin", dtype=TOKEN, mode="r"),
                np.cumsum(np.fromfile(f"{stem}.len", dtype="<u4"), dtype=np.int64),
            )


def by_document(results: list[dict[str, Any]], work: Path, share: float, train: Split, val: Split) -> None:
    """Some documents, by their number, for validation. Raises UserError where there are too few."""
    total = sum(result["documents"] for result in results)
    if total < 2:
        hint = " (--val-fraction 0.1 cuts one document, its last tenth for validation)" if total else ""
        raise UserError(f"{total} documents are too few: both splits need one{hint}")
    chosen = np.concatenate(
        [
            np.flatnonzero(is_validation(first, min(1 << 20, total - first), share)) + first
            for first in range(0, total, 1 << 20)
        ]
    )
    if not 0 < chosen.size < total:
        chosen = np.array([splitmix64(SPLIT_SEED) % total])
    first = 0
    for tokens, ends in encoded(results, work):
        mine = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + ends.size)] - first
        place = 0
        for document in mine:
            begin, end = int(ends[document - 1]) if document else 0, int(ends[document])
            copy(tokens, place, begin, train)
            copy(tokens, begin, end, val)
            place = end
        copy(tokens, place, tokens.size, train)
        val.documents += mine.size
        train.documents += ends.size - mine.size
        first += ends.size


def by_place(results: list[dict[str, Any]], work: Path, fraction: float, train: Split, val: Split) -> None:
    """The last tokens for validation, the document at the cut in two.

    Raises UserError where there are too few.
    """
    total = sum(result["tokens"] for result in results)
    if total < 10:
        raise UserError(f"{total} tokens are too few to be cut in two")
    # tokens before the cut, of the groups to come
    left = min(max(total - round(total * fraction), 1), total - 2)
    for tokens, ends in encoded(results, work):
        cut = min(left, tokens.size)
        if 0 < left < tokens.size:
            cut = readable_cut(tokens, cut)
        copy(tokens, 0, cut, train)
        copy(tokens, cut, tokens.size, val)
        whole = int(np.searchsorted(ends, cut, side="right"))
        train.documents += whole
        val.documents += ends.size - whole
        if cut and tokens[cut - 1] != END_OF_TEXT:
            train.add(np.array([END_OF_TEXT], dtype=TOKEN))
            train.documents += 1
        left = max(0, left - tokens.size)


def readable_cut(tokens: NDArray[np.uint16], place: int) -> int:
    """The next place at which a word begins, at least a character; the same place where there is none
    before the document's end.
    """
    if tokens[place - 1] == END_OF_TEXT:
        return place
    pieces = []
    for token in tokens[place : place + WORD_TOKENS].tolist():
        if token == END_OF_TEXT:
            break
        pieces.append(gpt2().decode_single_token_bytes(token))
    begins_word = (offset for offset, piece in enumerate(pieces) if piece[:1].isspace())
    begins_character = (offset for offset, piece in enumerate(pieces) if not 0x80 <= piece[0] < 0xC0)
    return place + next(begins_word, next(begins_character, 0))


def copy(tokens: NDArray[np.uint16], begin: int, end: int, split: Split) -> None:
    for place in range(begin, end, COPY_TOKENS):
        split.add(np.ascontiguousarray(tokens[place : min(end, place + COPY_TOKENS)]))
