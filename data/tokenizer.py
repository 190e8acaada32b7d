"""Tokenizers behind one interface: GPT-2's BPE, characters, bytes, and a user's own tokenizer.json.

    tokenizer = open_tokenizer(described(meta))     # of a dataset, or of what a checkpoint recorded
    tokenizer = open_tokenizer(named("bytes"))      # of a command line

Nothing else asks for the name of a tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from config.tokenizers import BYTES, CHARACTERS, GPT2, TOKENIZER_FILE
from config.values import nearest
from data.bins import META, NEEDED, TOKEN, Tokens, read_meta
from data.bpe import END_OF_TEXT, gpt2, token_lengths
from data.encode import Checked, best_engine
from data.tokenizer_json import (
    Stored,
    UsersOwn,
    read_vocabulary,
    stored_byte_pairs,
    stored_bytes,
    stored_characters,
)
from data.vocabulary import OF_BPE, Vocabulary, described
from errors import UserError


class Encoder(Protocol):
    """Documents of one shard to tokens, batch by batch."""

    def encode(self, texts: list[str], shard_name: str) -> tuple[Tokens, NDArray[np.int64]]:
        """Tokens of all documents, each followed by the end-of-text token if there is one, and how many that
        is for each document. Raises UserError.
        """
        ...


class Tokenizer(Protocol):
    """known: what identifies it. size: of its vocabulary, all of whose tokens are smaller. is_exact: whether
    its tokens give every text back. description: what meta.json says of it beside `known`.
    """

    known: Vocabulary
    size: int
    is_exact: bool

    @property
    def description(self) -> Mapping[str, Any]: ...

    def encoder(self, shard: int) -> Encoder:
        """Of the shard of this number."""
        ...

    def encode(self, text: str) -> list[int]:
        """A text without an end. Raises UserError for text that there are no tokens for."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """The text of a token, which may be part of a character. Raises KeyError or IndexError for one
        beyond the vocabulary.
        """
        ...

    def files(self) -> dict[str, bytes]:
        """Files that must stand beside the bins, by name."""
        ...

    def stored(self) -> Stored:
        """As Hugging Face's tokenizers has it. Raises UserError where that form cannot hold it."""
        ...


class BytePairs:
    """GPT-2's."""

    known = OF_BPE
    size = END_OF_TEXT + 1
    is_exact = True

    def __init__(self, known: Vocabulary = OF_BPE) -> None:
        self.encoding = gpt2()

    @property
    def description(self) -> Mapping[str, Any]:
        return {"engine": best_engine().name}

    def encoder(self, shard: int) -> Encoder:
        return Checked(shard)

    def encode(self, text: str) -> list[int]:
        return list(self.encoding.encode_ordinary(text))

    def bytes_of(self, token: int) -> bytes:
        return bytes(self.encoding.decode_single_token_bytes(token))

    def files(self) -> dict[str, bytes]:
        return {}

    def stored(self) -> Stored:
        return stored_byte_pairs()


class Characters:
    """Those of one text, in the order of their numbers (data/characters.py finds them)."""

    is_exact = True
    description: Mapping[str, Any] = {}

    def __init__(self, known: Vocabulary) -> None:
        assert known.characters, "data.bins.read_meta refuses a dataset without them"
        self.known, self.characters = known, known.characters
        self.size = len(self.characters)
        self.numbers = {character: number for number, character in enumerate(self.characters)}

    def encoder(self, shard: int) -> Encoder:
        return _OfCharacters(self)

    def encode(self, text: str) -> list[int]:
        strange = sorted(set(text) - set(self.numbers))
        if strange:
            raise UserError(f"{text!r}: the training data have no {strange[0]!r}")
        return [self.numbers[character] for character in text]

    def bytes_of(self, token: int) -> bytes:
        return self.characters[token].encode(errors="surrogatepass")

    def files(self) -> dict[str, bytes]:
        return {}

    def stored(self) -> Stored:
        return stored_characters(self.characters)


class _OfCharacters:
    def __init__(self, tokenizer: Characters) -> None:
        self.tokenizer = tokenizer

    def encode(self, texts: list[str], shard_name: str) -> tuple[Tokens, NDArray[np.int64]]:
        each = [self.tokenizer.encode(text) for text in texts]
        lengths = np.array([len(tokens) for tokens in each], dtype=np.int64)
        return np.fromiter(chain.from_iterable(each), dtype=TOKEN, count=int(lengths.sum())), lengths


class Bytes:
    """UTF-8 as it is; documents follow each other with nothing between them."""

    known = Vocabulary(BYTES)
    size = 256
    is_exact = True
    description: Mapping[str, Any] = {}

    def __init__(self, known: Vocabulary = known) -> None:
        pass

    def encoder(self, shard: int) -> Encoder:
        return _BytesOfDocuments()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def bytes_of(self, token: int) -> bytes:
        return _SINGLE[token]

    def files(self) -> dict[str, bytes]:
        return {}

    def stored(self) -> Stored:
        return stored_bytes()


_SINGLE = [bytes([value]) for value in range(256)]


class _BytesOfDocuments:
    def encode(self, texts: list[str], shard_name: str) -> tuple[Tokens, NDArray[np.int64]]:
        documents = [text.encode() for text in texts]
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        return np.frombuffer(b"".join(documents), dtype=np.uint8).astype(TOKEN), lengths


@dataclass(frozen=True)
class Kind:
    """open: the tokenizer of a vocabulary. vocabulary: that of the name. is_learned: it is found in the text,
    so that there is none before that. sizes: as `sizes_of`, where that is had without the tokenizer.
    """

    open: Callable[[Vocabulary], Tokenizer]
    vocabulary: Vocabulary
    is_learned: bool = False
    sizes: Callable[[], Sequence[int] | None] | None = None


NAMED = {
    GPT2: Kind(BytePairs, BytePairs.known, sizes=token_lengths),
    CHARACTERS: Kind(Characters, Vocabulary(CHARACTERS), is_learned=True),
    BYTES: Kind(Bytes, Bytes.known),
}
KINDS = {**NAMED, TOKENIZER_FILE: Kind(UsersOwn, Vocabulary(TOKENIZER_FILE))}


def _kind_of(known: Vocabulary) -> Kind | None:
    is_complete = all(getattr(known, name) for name in NEEDED.get(str(known.tokenizer), ()))
    return KINDS.get(str(known.tokenizer)) if is_complete else None


def open_tokenizer(known: Vocabulary) -> Tokenizer | None:
    """None where no tokenizer is named, or one that is not known here. Raises UserError where it cannot be
    had.
    """
    kind = _kind_of(known)
    return kind.open(known) if kind else None


def sizes_of(known: Vocabulary) -> Sequence[int] | None:
    """Bytes of each token; of the end of a text, 0. None where the tokenizer is not known, or not at hand.
    Raises UserError as `open_tokenizer` does.
    """
    kind = _kind_of(known)
    if kind is None:
        return None
    if kind.sizes is not None:
        return kind.sizes()
    tokenizer = kind.open(known)
    sizes = [len(tokenizer.bytes_of(token)) for token in range(tokenizer.size)]
    if known.end_of_text is not None:
        sizes[known.end_of_text] = 0
    return sizes


def named(name: str) -> Vocabulary:
    """The vocabulary of a tokenizer that a command line names, which may be a file, or the folder of a
    dataset. Raises UserError.
    """
    if name in NAMED:
        return NAMED[name].vocabulary
    if (Path(name) / META).is_file():
        known = described(read_meta(Path(name)))
        if known.tokenizer is None:
            raise UserError(f"--tokenizer {name}: {META} there names no tokenizer")
        return known
    if name.endswith(".json") or os.path.exists(name):
        return read_vocabulary(Path(name))
    raise UserError(
        f"--tokenizer {name}: there is no such tokenizer{nearest(name, NAMED)}; there are {', '.join(NAMED)},"
        f" or the path of a {TOKENIZER_FILE}"
    )


def text_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Raises UserError for tokens beyond the vocabulary."""
    try:
        return b"".join(map(tokenizer.bytes_of, tokens)).decode("utf-8", "replace")
    except (KeyError, IndexError):
        raise UserError(
            "the bins hold tokens that their tokenizer does not know; prepare the dataset again"
        ) from None
