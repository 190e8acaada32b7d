"""Tokenizers in the form of Hugging Face's tokenizers, a file tokenizer.json: those of our own to write, and
one of a user's to read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.tokenizers import TOKENIZER_FILE
from data.bins import Tokens, dtype_for
from data.bpe import cached_path
from data.encode import with_ends
from data.vocabulary import Vocabulary
from errors import UserError, missing_package
from files import read_json

NAME = "<|endoftext|>"  # how GPT-2's vocabulary writes the token between documents
ENDS = (NAME, "</s>", "<|end_of_text|>", "<eos>")  # of a user's tokenizer, where no file beside it names one


@dataclass(frozen=True)
class Stored:
    """content: of tokenizer.json. special: tokens by their role, for tokenizer_config.json. words: a sentence
    about it.
    """

    content: dict[str, Any]
    special: dict[str, str]
    words: str


# ours


def _tokenizer(
    model: dict[str, Any], split: dict[str, Any], decoder: dict[str, Any], added: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def stored_byte_pairs() -> Stored:
    """GPT-2's, from the two files of ranks that tiktoken reads."""
    numbers = json.loads(cached_path("encoder.json").read_text(encoding="utf-8"))
    merges = [line for line in cached_path("vocab.bpe").read_text(encoding="utf-8").split("\n")[1:] if line]
    end = numbers[NAME]
    level = _byte_level(use_regex=True)
    added = {
        "id": end,
        "content": NAME,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    content = _tokenizer(_bpe(numbers, merges), level, level, [added])
    words = "The tokenizer in this folder is GPT-2's byte-pair encoding. Documents end with token 50256."
    return Stored(content, {"eos_token": NAME, "pad_token": NAME}, words)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _bpe(numbers: Mapping[str, int], merges: list[str]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": numbers,
        "merges": merges,
    }


def byte_characters() -> list[str]:
    """The character that stands for each byte in the vocabulary of a byte-level tokenizer: its own where that
    is printable, one from 256 on for the others.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = 256
    characters = []
    for value in range(256):
        if value in printable:
            characters.append(chr(value))
        else:
            characters.append(chr(others))
            others += 1
    return characters


def stored_bytes() -> Stored:
    numbers = {character: value for value, character in enumerate(byte_characters())}
    level = _byte_level(use_regex=False)
    words = (
        "The tokenizer in this folder takes each byte of UTF-8 as a token; no token is left for padding or"
        " for the end of a document."
    )
    return Stored(_tokenizer(_bpe(numbers, []), level, level, []), {}, words)


def stored_characters(characters: str) -> Stored:
    """One token a character. `unk_token` is no token: a character that there is none for is an error, not
    a gap. Raises UserError for characters that JSON cannot hold.
    """
    if any("\ud800" <= character <= "\udfff" for character in characters):
        raise UserError("tokens are characters, and some are lone surrogates, which its format cannot hold")
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "WordLevel",
        "vocab": {character: number for number, character in enumerate(characters)},
        "unk_token": "",
    }
    words = (
        "The tokenizer in this folder takes each character as a token and refuses those that the training"
        " data did not have; no token is left for padding or for the end of a document."
    )
    return Stored(_tokenizer(model, split, {"type": "Fuse"}, []), {}, words)


# a user's


def _loaded(path: Path) -> tuple[Any, bytes]:
    """A tokenizer of the package tokenizers, and the content of its file. Raises UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror}") from None
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs a package: {missing_package(error)}") from None
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # its reader raises no other
        why = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} is no {TOKENIZER_FILE} as Hugging Face's tokenizers writes it ({why})"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # such a token, written out in a text, is ordinary text
    return tokenizer, content


def read_vocabulary(path: Path) -> Vocabulary:
    """What identifies the tokenizer of a file. Raises UserError where it is none.

    Its end-of-text token is the eos_token of a tokenizer_config.json beside it, else one of the usual names.
    """
    tokenizer, content = _loaded(path)
    if not tokenizer.get_vocab_size():
        raise UserError(f"{path} has no tokens")
    stated = (read_json(path.with_name("tokenizer_config.json")) or {}).get("eos_token")
    if isinstance(stated, Mapping):
        stated = stated.get("content")
    known = [tokenizer.token_to_id(name) for name in (stated, *ENDS) if isinstance(name, str)]
    end = next((number for number in known if number is not None), None)
    digest = hashlib.sha256(content).hexdigest()
    return Vocabulary(TOKENIZER_FILE, end, None, str(path.absolute()), digest)


class UsersOwn:
    """The tokenizer of a file. Text that it has no tokens for is lost, or becomes its token for the unknown:
    its file decides.
    """

    is_exact = False

    def __init__(self, known: Vocabulary) -> None:
        """Raises UserError where the file is gone, or another one."""
        path = Path(str(known.tokenizer_file))
        if not path.is_file():
            raise UserError(
                f"the tokenizer {path} is gone: put it back (SHA-256 {known.tokenizer_sha256}), or give the"
                " path of a copy as --tokenizer"
            )
        self.known = known
        self.tokenizer, self.content = _loaded(path)
        if hashlib.sha256(self.content).hexdigest() != known.tokenizer_sha256:
            raise UserError(
                f"{path} is another tokenizer than that of these tokens, whose SHA-256 is"
                f" {known.tokenizer_sha256}: put that back, or give the path of a copy as --tokenizer"
            )
        self.size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def description(self) -> Mapping[str, Any]:
        import tokenizers

        return {"engine": f"tokenizers {tokenizers.__version__}", "vocab_size": self.size}

    def encoder(self, shard: int) -> _OfUsersOwn:
        return _OfUsersOwn(self)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def bytes_of(self, token: int) -> bytes:
        return self._pieces[token]

    def files(self) -> dict[str, bytes]:
        return {TOKENIZER_FILE: self.content}

    def stored(self) -> Stored:
        words, special = "The tokenizer in this folder is that of the training data.", {}
        if self.known.end_of_text is not None:
            name = self.tokenizer.id_to_token(self.known.end_of_text)
            words += f" Documents end with token {self.known.end_of_text}."
            special = {"eos_token": name, "pad_token": name}
        return Stored(json.loads(self.content), special, words)

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The text of each token where it follows another one: what a second one adds to the first."""
        kinds = _kinds_of_decoders(json.loads(self.content).get("decoder"))
        special = {
            number for number, added in self.tokenizer.get_added_tokens_decoder().items() if added.special
        }
        once = self.tokenizer.decode_batch([[token] for token in range(self.size)], skip_special_tokens=False)
        pairs = [[token, token] for token in range(self.size)]
        twice = self.tokenizer.decode_batch(pairs, skip_special_tokens=False)
        pieces = []
        for token in range(self.size):
            name = self.tokenizer.id_to_token(token)
            if name is not None and "ByteFallback" in kinds and BYTE_TOKEN.fullmatch(name):
                pieces.append(bytes.fromhex(name[3:5]))
            elif name is None or token in special:
                pieces.append(b"")
            elif "ByteLevel" in kinds and all(character in BYTE_OF for character in name):
                pieces.append(bytes(BYTE_OF[character] for character in name))
            else:
                pieces.append(twice[token].removeprefix(once[token]).encode())
        return pieces


BYTE_OF = {character: value for value, character in enumerate(byte_characters())}
BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


def _kinds_of_decoders(decoder: Mapping[str, Any] | None) -> set[str]:
    """Names of the steps by which tokens become text."""
    if decoder is None:
        return set()
    kinds = {decoder["type"]}
    for step in decoder.get("decoders", ()):
        kinds |= _kinds_of_decoders(step)
    return kinds


class _OfUsersOwn:
    def __init__(self, tokenizer: UsersOwn) -> None:
        self.tokenizer, self.end = tokenizer.tokenizer, tokenizer.known.end_of_text
        self.dtype = dtype_for(tokenizer.size)

    def encode(self, texts: list[str], shard_name: str) -> tuple[Tokens, NDArray[np.int64]]:
        ids = [encoded.ids for encoded in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.array([len(each) for each in ids], dtype=np.int64)
        tokens = np.fromiter(chain.from_iterable(ids), dtype=self.dtype, count=int(lengths.sum()))
        return (tokens, lengths) if self.end is None else with_ends(tokens, lengths, self.end, self.dtype)
