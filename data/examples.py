"""Examples for fine-tuning as python -m data.tokenize --format has stored them, read where they lie.

    splits = open_examples(folder, CHAT, vocab_size)
    tokens, counted = splits.train.example(7)

A split is a bin of tokens, an index of segments (data/segments.py), and of prompts also their texts as JSON
lines. All of these are mapped; the index is summed up when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from config.formats import CHAT, FORMATS, INDEX, LINES, PAIRS, PROMPTS
from data.bins import (
    META,
    WIDE_TOKEN,
    dtype_of,
    is_prepared,
    map_tokens,
    need_format,
    not_prepared,
    read_meta,
)
from data.segments import LINE_FEED, counted_in, ends_of_examples, lengths_in
from errors import OwnError, UserError

BYTE = np.dtype(np.uint8)


@dataclass(frozen=True)
class Prompt:
    """tokens: (n,) int64. text: what they are of. answer: the right one, where the file has it."""

    tokens: NDArray[np.int64]
    text: str
    answer: str | None = None


class Examples:
    """Those of a split. lengths: tokens of all segments of each example, (N,) int64.

    vocab_size: larger tokens are refused when they are read; None: any token.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], vocab_size: int | None = None) -> None:
        """path: of the bin. Raises UserError where its index is not there, or of another bin."""
        self.path, self.vocab_size = path, vocab_size
        self.tokens = map_tokens(path, dtype=dtype)
        segments = map_tokens(path.with_suffix(f".{INDEX}"), dtype=WIDE_TOKEN)
        self.counted = counted_in(segments)
        self.begins = np.concatenate([[0], np.cumsum(lengths_in(segments))])  # of each segment, and the end
        self.ends = ends_of_examples(segments)  # of each example, the segment after its last
        if self.begins[-1] != self.tokens.size or not self.ends.size or self.ends[-1] != segments.size:
            raise self.damaged(f"{path.with_suffix(f'.{INDEX}')} is of other tokens")
        self.lengths = np.diff(self.begins[self.ends], prepend=0)

    def damaged(self, why: str) -> UserError:
        return OwnError(
            f"{self.path} is damaged (python -m data.inspect tells more), prepare the dataset again: {why}"
        )

    def __len__(self) -> int:
        return int(self.ends.size)

    @property
    def row_lengths(self) -> NDArray[np.int64]:
        """Tokens of the longest sequence that is made of each example (N,)."""
        return self.lengths

    @property
    def firsts(self) -> NDArray[np.int64]:
        """The first segment of each example (N,)."""
        return np.concatenate([[0], self.ends[:-1]])

    def segments(self, number: int) -> range:
        """Of an example."""
        return range(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def segment(self, number: int) -> NDArray[np.int64]:
        """Tokens of a segment. Raises UserError for one that the vocabulary lacks."""
        tokens = self.tokens[self.begins[number] : self.begins[number + 1]].astype(np.int64)
        if self.vocab_size is not None and tokens.max(initial=0) >= self.vocab_size:
            raise self.damaged(f"it holds token {tokens.max()}, beyond --vocab_size {self.vocab_size}")
        return tokens

    def prompts(self) -> Iterator[bytes]:
        """The first segment of each example, as it is stored."""
        firsts = self.firsts
        for begin, end in zip(self.begins[firsts].tolist(), self.begins[firsts + 1].tolist(), strict=True):
            yield self.tokens[begin:end].tobytes()


class ChatExamples(Examples):
    def __init__(self, path: Path, dtype: np.dtype[Any], vocab_size: int | None = None) -> None:
        super().__init__(path, dtype, vocab_size)
        if self.counted[self.firsts].any():
            raise self.damaged("an example begins with an answer, whose first token could be no target")
        if not self.counts.all():
            raise self.damaged("an example has no answer")

    def example(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Its tokens (n,), and whether each is counted (n,)."""
        segments = self.segments(number)
        tokens = [self.segment(segment) for segment in segments]
        counted = np.repeat(self.counted[segments.start : segments.stop], [part.size for part in tokens])
        return np.concatenate(tokens), counted

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counted tokens of each example (N,)."""
        of_segments = np.diff(self.begins) * self.counted
        return np.diff(np.concatenate([[0], np.cumsum(of_segments)])[self.ends], prepend=0)


class PairExamples(Examples):
    def __init__(self, path: Path, dtype: np.dtype[Any], vocab_size: int | None = None) -> None:
        super().__init__(path, dtype, vocab_size)
        if (self.ends != np.arange(3, 3 * len(self) + 1, 3)).any():
            raise self.damaged("an example is no prompt with two answers")

    def example(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of the prompt, of the chosen answer and of the rejected one."""
        first = 3 * number
        return self.segment(first), self.segment(first + 1), self.segment(first + 2)

    @property
    def row_lengths(self) -> NDArray[np.int64]:
        """Of a prompt and the longer one of its answers."""
        prompt, chosen, rejected = np.diff(self.begins).reshape(-1, 3).T
        return np.asarray(prompt + np.maximum(chosen, rejected))


class PromptExamples(Examples):
    def __init__(self, path: Path, dtype: np.dtype[Any], vocab_size: int | None = None) -> None:
        super().__init__(path, dtype, vocab_size)
        self.lines = map_tokens(path.with_suffix(f".{LINES}"), dtype=BYTE)
        self.line_ends = np.flatnonzero(self.lines == LINE_FEED)
        if self.line_ends.size != len(self) or self.ends[-1] != len(self):
            raise self.damaged(f"{path.with_suffix(f'.{LINES}')} is of other prompts")

    def example(self, number: int) -> Prompt:
        begin = int(self.line_ends[number - 1]) + 1 if number else 0
        try:
            kept = json.loads(self.lines[begin : self.line_ends[number]].tobytes())
            text, answer = kept["prompt"], kept.get("answer")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self.damaged(f"the text of prompt {number} cannot be read") from None
        return Prompt(self.segment(number), text, answer)


KINDS: dict[str, type[Examples]] = {CHAT: ChatExamples, PAIRS: PairExamples, PROMPTS: PromptExamples}
E = TypeVar("E", bound=Examples, covariant=True)


@dataclass(frozen=True)
class ExampleSplits(Generic[E]):
    """stop: the token that ends an answer."""

    train: E
    val: E
    meta: dict[str, Any]
    folder: Path

    @property
    def stop(self) -> int:
        return int(self.meta["stop"])


def open_examples(
    folder: Path, wanted: str | None = None, vocab_size: int | None = None
) -> ExampleSplits[Any]:
    """Both splits of a prepared folder. wanted: the format that they must have; None: any. vocab_size: of the
    model that they are for. Raises UserError.
    """
    if not is_prepared(folder):
        raise UserError(not_prepared(folder.name, folder, vocab_size, wanted))
    meta = read_meta(folder)
    if wanted is not None:
        need_format(folder, meta, wanted)
    kind = KINDS.get(str(meta.get("format")))
    if kind is None:
        raise UserError(
            f"{folder} holds no examples: {META} there names none of the formats {', '.join(FORMATS)}"
        )
    if not isinstance(meta.get("stop"), int) or not meta.get("splits"):
        raise UserError(f"{folder / META} lacks 'stop' or 'splits': prepare the dataset again")
    parts = {}
    for split in ("train", "val"):
        stated = meta["splits"].get(split, {})
        needed = max(stated.get("largest_token", 0), meta["stop"], meta.get("vocab_size", 1) - 1) + 1
        if vocab_size is not None and needed > vocab_size:
            raise UserError(f"{folder} needs --vocab_size {needed} or more, and it is {vocab_size}")
        found = parts[split] = kind(folder / f"{split}.bin", dtype_of(meta), vocab_size)
        if (len(found), found.tokens.size) != (stated.get("documents"), stated.get("tokens")):
            raise found.damaged(f"{len(found)} examples of {found.tokens.size} tokens, {META} says otherwise")
    return ExampleSplits(parts["train"], parts["val"], meta, folder)
