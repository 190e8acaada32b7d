"""Tokenizers of a user's own, made by the package tokenizers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

END = "<|endoftext|>"


def byte_level(path: Path, size: int = 300, end: str | None = END) -> Path:
    """A byte-pair encoding of so many tokens beside `end`: merges are of any two bytes, in order."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = list(itertools.islice(itertools.product(alphabet, alphabet), size - len(alphabet)))
    vocabulary = {token: number for number, token in enumerate([*alphabet, *map("".join, merges)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if end is not None:
        tokenizer.add_special_tokens([end])
    return saved(tokenizer, path)


def saved(tokenizer: Any, path: Path) -> Path:
    tokenizer.save(str(path))
    return path
