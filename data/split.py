"""Encoded groups of documents to the two bins: some documents for validation, or the last part of the
text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from config.formats import INDEX, LINES
from config.tokenizers import TOKENIZER_FILE
from data.bins import META, TOKEN, Tokens, beside, dtype_for
from data.order import splitmix64, splitmix64_array
from data.segments import LINE_FEED, ends_of_examples, lengths_in
from data.tokenizer import Tokenizer
from errors import UserError
from files import sync, sync_folder, write_atomically, write_json

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

    def add(self, tokens: NDArray[Any]) -> None:
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
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Join the groups into val.bin, meta.json and, last, train.bin, and before these the further files of
    examples. Raises UserError where a split stays empty.

    share: of the documents, for validation. fraction: instead, the share of the tokens, at the end.
    description: what meta.json says besides; has the format of examples.
    """
    parts = {ending: _Part(folder, ending) for ending in ("bin", *beside(description))}
    bins = parts["bin"]
    try:
        if fraction is None:
            for ending, part in parts.items():
                groups = encoded(results, work, dtype_for(tokenizer.size), description.get("format"), ending)
                by_document(results, groups, share, part.train, part.val)
            how: dict[str, Any] = {"split_seed": SPLIT_SEED, "val_share": share}
        else:
            by_place(results, work, fraction, bins.train, bins.val, tokenizer)
            how = {"val_fraction": fraction}
        bad_lines = description["bad_lines"] + sum(result["bad"] for result in results)
        meta = {
            **described_in_meta(tokenizer),
            **description,
            **how,
            "bytes": sum(result["bytes"] for result in results),
            "bad_lines": bad_lines,
            "splits": {"train": bins.train.describe(), "val": bins.val.describe()},
        }
        for ending, part in parts.items():
            if part is not bins:
                for split in part.splits:
                    meta["splits"][split.path.stem][f"{ending}_sha256"] = split.sha256.hexdigest()
        for split in bins.splits:
            if not split.tokens:
                raise UserError(f"{split.path.stem}.bin would be empty: its documents have no text")
        # of an earlier preparation: it must not remain beside the new val.bin
        (folder / "train.bin").unlink(missing_ok=True)
        sync_folder(folder)
        for name, content in tokenizer.files().items():
            write_atomically(folder / name, content)
        for part in parts.values():
            if part is not bins:
                part.train.publish()
                part.val.publish()
        bins.val.publish()
        write_json(folder / META, meta)
        bins.train.publish()
    finally:
        for part in parts.values():
            part.abandon()
    return meta


class _Part:
    """The files of both splits with one ending, being written."""

    def __init__(self, folder: Path, ending: str) -> None:
        self.val, self.train = Split(folder / f"val.{ending}"), Split(folder / f"train.{ending}")
        self.splits = (self.train, self.val)

    def abandon(self) -> None:
        for split in self.splits:
            split.abandon()


def described_in_meta(tokenizer: Tokenizer) -> dict[str, Any]:
    """What meta.json says of a tokenizer, and of the numbers in the bins."""
    known = {name: value for name, value in asdict(tokenizer.known).items() if value is not None}
    if tokenizer.known.tokenizer_file is not None:
        known["tokenizer_file"] = TOKENIZER_FILE
    dtype = dtype_for(tokenizer.size)
    wide = {} if dtype == TOKEN else {"dtype": dtype.name}
    return {**known, **tokenizer.description, **wide}


def encoded(
    results: list[dict[str, Any]],
    work: Path,
    dtype: np.dtype[Any],
    format: str | None = None,
    ending: str = "bin",
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Of each group that holds documents: its tokens, and the place after the last token of each document.

    ending: of examples, whose format is given, another of their files instead, as bytes or numbers.
    """
    for result in results:
        if result["documents"]:
            stem = work / f"{result['number']:06d}"
            tokens: NDArray[Any] = np.empty(0, dtype=dtype)
            if result["tokens"]:  # no empty file can be mapped
                tokens = np.memmap(f"{stem}.bin", dtype=dtype, mode="r")
            lengths = np.fromfile(f"{stem}.len", dtype="<u4")
            if format is None:
                yield tokens, np.cumsum(lengths, dtype=np.int64)
                continue
            ends = ends_of_examples(lengths)
            if ending == INDEX:
                yield lengths, ends
            elif ending == LINES:
                kept = np.memmap(f"{stem}.jsonl", dtype=np.uint8, mode="r")
                yield kept, np.flatnonzero(kept == LINE_FEED) + 1
            else:
                yield tokens, np.cumsum(lengths_in(lengths))[ends - 1]


def by_document(
    results: list[dict[str, Any]],
    groups: Iterable[tuple[NDArray[Any], NDArray[np.int64]]],
    share: float,
    train: Split,
    val: Split,
) -> None:
    """Some documents, by their number, for validation. groups: as `encoded` has it. Raises UserError where
    there are too few.
    """
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
    for tokens, ends in groups:
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


def by_place(
    results: list[dict[str, Any]],
    work: Path,
    fraction: float,
    train: Split,
    val: Split,
    tokenizer: Tokenizer,
) -> None:
    """The last tokens for validation, the document at the cut in two.

    Raises UserError where there are too few.
    """
    total = sum(result["tokens"] for result in results)
    if total < 10:
        raise UserError(f"{total} tokens are too few to be cut in two")
    end, dtype = tokenizer.known.end_of_text, dtype_for(tokenizer.size)
    # tokens before the cut, of the groups to come
    left = min(max(total - round(total * fraction), 1), total - 2)
    for tokens, ends in encoded(results, work, dtype):
        cut = min(left, tokens.size)
        if 0 < left < tokens.size:
            cut = readable_cut(tokens, ends, cut, tokenizer)
        copy(tokens, 0, cut, train)
        copy(tokens, cut, tokens.size, val)
        whole = int(np.searchsorted(ends, cut, side="right"))
        train.documents += whole
        val.documents += ends.size - whole
        if cut and not ends_a_document(ends, cut):
            if end is not None:
                train.add(np.array([end], dtype=dtype))
            train.documents += 1
        left = max(0, left - tokens.size)


def ends_a_document(ends: NDArray[np.int64], place: int) -> bool:
    number = int(np.searchsorted(ends, place))
    return number < ends.size and int(ends[number]) == place


def readable_cut(tokens: Tokens, ends: NDArray[np.int64], place: int, tokenizer: Tokenizer) -> int:
    """The next place at which a word begins, at least a character; the same place where there is none
    before the document's end.
    """
    if ends_a_document(ends, place):
        return place
    text_ends = int(ends[np.searchsorted(ends, place)])
    if tokenizer.known.end_of_text is not None:
        text_ends -= 1
    pieces = list(map(tokenizer.bytes_of, tokens[place : min(place + WORD_TOKENS, text_ends)].tolist()))
    begins_word = (offset for offset, piece in enumerate(pieces) if piece[:1].isspace())
    begins_character = (offset for offset, piece in enumerate(pieces) if not b"\x80" <= piece[:1] < b"\xc0")
    return place + next(begins_word, next(begins_character, 0))


def copy(tokens: NDArray[Any], begin: int, end: int, split: Split) -> None:
    for place in range(begin, end, COPY_TOKENS):
        split.add(np.ascontiguousarray(tokens[place : min(end, place + COPY_TOKENS)]))
