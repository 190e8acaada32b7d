"""GPT-2 BPE by the fastest engine that is installed, checked against tiktoken while it runs.

gigatoken is given no special tokens, so that a literal "<|endoftext|>" in a document stays ordinary text.
"""

from __future__ import annotations

import base64
import importlib.util
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.bins import TOKEN, Tokens
from data.bpe import END_OF_TEXT, cache_folder, gpt2
from data.order import splitmix64
from errors import UserError
from files import write_atomically

SAMPLED = 4096  # one document in this many is encoded by both engines, besides the first of each shard


class Engine(Protocol):
    name: str

    def encode(self, texts: list[str]) -> tuple[Tokens, NDArray[np.int64]]:
        """Tokens of all documents, each followed by END_OF_TEXT, and how many that is for each document."""


def with_ends(
    tokens: NDArray[Any], lengths: NDArray[np.int64], end: int, dtype: np.dtype[Any]
) -> tuple[Tokens, NDArray[np.int64]]:
    """Tokens of documents of these lengths, each followed by the token `end`, and their new lengths."""
    ends = np.cumsum(lengths + 1) - 1
    out = np.empty(tokens.size + lengths.size, dtype=dtype)
    inside = np.ones(out.size, dtype=bool)
    inside[ends] = False
    out[inside] = tokens
    out[ends] = end
    return out, lengths + 1


class Tiktoken:
    """The reference."""

    name = "tiktoken"

    def __init__(self) -> None:
        self.encoding = gpt2()

    def one(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def encode(self, texts: list[str]) -> tuple[Tokens, NDArray[np.int64]]:
        each = [self.one(text) for text in texts]
        tokens = np.fromiter(chain.from_iterable(each), dtype=TOKEN)
        lengths = np.array([len(text_tokens) for text_tokens in each], dtype=np.int64)
        return with_ends(tokens, lengths, END_OF_TEXT, TOKEN)


def rank_file() -> Path:
    """GPT-2's ranks as gigatoken reads them: a line of base64 and rank for each token, made from
    tiktoken's.
    """
    path = cache_folder() / "gpt2.tiktoken"
    content = b"".join(
        base64.b64encode(token) + b" %d\n" % rank
        for token, rank in sorted(gpt2()._mergeable_ranks.items(), key=lambda item: item[1])
    )
    if not path.is_file() or path.read_bytes() != content:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


class Gigatoken:
    """The fast engine; `Checked` compares a sample of its results with the reference."""

    name = "gigatoken"

    def __init__(self) -> None:
        import gigatoken

        self.tokenizer = gigatoken.Tokenizer.from_tiktoken(
            rank_file(), pretokenizer="gpt2", special_tokens={}
        )

    def encode(self, texts: list[str]) -> tuple[Tokens, NDArray[np.int64]]:
        layout = self.tokenizer.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets, dtype=np.int64)
        tokens = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return with_ends(tokens, np.diff(offsets), END_OF_TEXT, TOKEN)


@cache
def best_engine() -> Engine:
    """One for the whole process: it learns words while it encodes."""
    return Gigatoken() if importlib.util.find_spec("gigatoken") else Tiktoken()


@cache
def reference_engine() -> Tiktoken:
    return Tiktoken()


class Checked:
    """An engine whose results are compared with tiktoken's for the first document and a random sample of a
    shard.
    """

    def __init__(self, shard_number: int) -> None:
        self.engine = best_engine()
        self.reference = reference_engine() if self.engine.name != "tiktoken" else None
        self.key, self.number = splitmix64(shard_number), 0

    def encode(self, texts: list[str], shard_name: str) -> tuple[Tokens, NDArray[np.int64]]:
        """As Engine.encode. Raises UserError with a document's place where the engines differ."""
        tokens, lengths = self.engine.encode(texts)
        if self.reference is not None:
            begins = np.cumsum(lengths) - lengths
            for index, text in enumerate(texts):
                number = self.number + index
                if number and splitmix64(self.key ^ number) % SAMPLED:
                    continue
                mine = tokens[begins[index] : begins[index] + lengths[index] - 1]
                if not np.array_equal(mine, np.array(self.reference.one(text), dtype=TOKEN)):
                    raise UserError(
                        f"{shard_name}: document {number + 1} is encoded differently by {self.engine.name}"
                        f" and tiktoken; uninstall {self.engine.name} and report the document"
                    )
        self.number += len(texts)
        return tokens, lengths
