"""A built-in corpus whose validation text is not in its training text: the dataset NAME-apart, of the corpus
NAME, made when it is first asked for.

    python -m data.overlap lib_code-apart        # makes it, says what was left out, and measures: 0

Documents are chosen for validation by their number, as in any dataset. Of these, each that shares a run of
tokens (data/shared_runs.py) with the training text is left out, and counted in text.json beside the bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.bins import META, Tokens, dtype_for, ends_of, map_tokens
from data.built_in import BuiltIn
from data.shared_runs import default_length, shared_windows, windows_of
from data.split import SPLIT_SEED, Split, described_in_meta, is_validation
from data.tokenizer import Tokenizer, named, open_tokenizer
from errors import UserError
from files import write_json

TEXT = "text.json"  # beside the bins: what was left out
IN_META = "apart"  # the same in meta.json
MORE = 3  # times the corpus's share of validation documents are chosen, as many of them are left out


def tokens_of(tokenizer: Tokenizer, texts: list[str]) -> list[Tokens]:
    """Of each document, with its end-of-text token if there is one. Raises UserError."""
    tokens, lengths = tokenizer.encoder(0).encode(texts, "documents")
    after = np.cumsum(lengths).tolist()
    return [tokens[begin:end] for begin, end in zip([0, *after], after, strict=False)]


def not_in(train: Tokens, documents: list[Tokens], end: int | None, length: int) -> NDArray[np.bool_]:
    """Whether each document is kept, so that what is kept, one after the other, shares no window of `length`
    tokens with the training text. end: the token that ends documents, if there is one.
    """
    keep = np.ones(len(documents), dtype=bool)
    while keep.any():
        numbers = np.flatnonzero(keep)
        kept = [documents[number] for number in numbers.tolist()]
        val: Any = np.concatenate(kept)
        after = np.cumsum([document.size for document in kept])
        starts = windows_of(val, None if end is None else ends_of(val, end), length)
        shared = starts[shared_windows(train, val, starts, length)]
        if not shared.size:
            break
        keep[numbers[np.searchsorted(after, shared, side="right")]] = False
    return keep


def make_apart(corpus: BuiltIn, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write both bins, meta.json and text.json. Returns what text.json holds.

    Raises UserError where no validation document would be left.
    """
    tokenizer = open_tokenizer(named(corpus.tokenizer))
    assert tokenizer is not None, "built-in corpora have tokenizers that are known"
    texts = [text for _, text in corpus.documents()]
    share, end = min(0.5, MORE * corpus.val_share), tokenizer.known.end_of_text
    chosen = is_validation(0, len(texts), share)
    every = tokens_of(tokenizer, texts)
    dtype = dtype_for(tokenizer.size)
    train, val = Split(folder / "train.bin"), Split(folder / "val.bin")
    try:
        _fill(train, [every[number] for number in np.flatnonzero(~chosen)], dtype)
        train.file.flush()
        there = map_tokens(train.temporary, dtype=dtype)
        numbers = np.flatnonzero(chosen)
        length = default_length(tokenizer.known.tokenizer)
        keep = not_in(there, [every[number] for number in numbers], end, length)
        if not keep.any():
            raise UserError(f"every validation document shares {length} tokens with the training text")
        _fill(val, [every[number] for number in numbers[keep]], dtype)
        dropped = numbers[~keep]
        text: dict[str, Any] = {
            "length": length,
            "tokenizer": tokenizer.known.tokenizer,
            "training_documents": train.documents,
            "validation_documents": val.documents,
            "dropped_documents": int(dropped.size),
            "dropped_tokens": sum(every[number].size for number in dropped),
        }
        in_bins = np.concatenate([np.flatnonzero(~chosen), numbers[keep]])
        meta = {
            **described_in_meta(tokenizer),
            "split_seed": SPLIT_SEED,
            "val_share": share,
            IN_META: text,
            "bytes": sum(len(texts[number].encode()) for number in in_bins),
            "bad_lines": 0,
            "splits": {"train": train.describe(), "val": val.describe()},
        }
        val.publish()
        write_json(folder / TEXT, text)
        write_json(folder / META, meta)
        train.publish()
    finally:
        train.abandon()
        val.abandon()
    say(words_of(text))
    return text


def _fill(split: Split, documents: Iterable[Tokens], dtype: np.dtype[Any]) -> None:
    for document in documents:
        split.add(np.ascontiguousarray(document, dtype=dtype))
        split.documents += 1


def words_of(text: dict[str, Any]) -> str:
    """What text.json says, in a line."""
    chosen = text["validation_documents"] + text["dropped_documents"]
    return (
        f"left out of the validation text: {text['dropped_documents']:,} of {chosen:,} documents, which share"
        f" {text['length']} tokens in a row with the training text ({text['dropped_tokens']:,} tokens)"
    )
