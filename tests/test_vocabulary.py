"""What a model's tokens stand for travels with its checkpoint; nobody guesses it."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

import config
from data.vocabulary import OF_BPE, Vocabulary, need_same_tokens, vocabulary_of
from errors import UserError
from optim.language_model import note_on_vocabulary

LETTERS = Vocabulary("char", None, "abc")


def opened(folder: Path, **flags: Any) -> Namespace:
    return config.add_defaults({"dataset": str(folder), "model": "base", **flags})


def meta(folder: Path, **values: Any) -> None:
    (folder / "meta.json").write_text(json.dumps(values))


def test_the_checkpoint_is_believed_before_the_dataset(tmp_path: Path) -> None:
    meta(tmp_path, tokenizer="gpt2", end_of_text=50256)
    assert (
        vocabulary_of(
            {"vocabulary": {"tokenizer": "char", "end_of_text": None, "characters": "abc"}}, opened(tmp_path)
        )
        == LETTERS
    )


def test_the_dataset_is_asked_where_the_checkpoint_says_nothing(tmp_path: Path) -> None:
    meta(tmp_path, tokenizer="char", characters="abc")
    assert vocabulary_of({}, opened(tmp_path)) == LETTERS


SAID = {"vocabulary": {"tokenizer": "char", "end_of_text": None, "characters": "abc"}}


@pytest.mark.parametrize(
    "other",
    [{"tokenizer": "gpt2", "end_of_text": 50256}, {"tokenizer": "char", "characters": "xyz"}],
    ids=str,
)
def test_a_model_is_not_evaluated_on_tokens_that_stand_for_something_else(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="a loss on them would say nothing"):
        need_same_tokens(SAID, other, tmp_path)


@pytest.mark.parametrize(
    ("state", "other"),
    [(SAID, {"tokenizer": "char", "characters": "abc"}), (SAID, {}), ({}, {"tokenizer": "gpt2"})],
    ids=str,
)
def test_where_one_says_nothing_or_both_the_same_it_is_evaluated(
    tmp_path: Path, state: dict[str, Any], other: dict[str, Any]
) -> None:
    need_same_tokens(state, other, tmp_path)


def test_a_large_vocabulary_alone_is_not_taken_for_that_of_gpt2(tmp_path: Path) -> None:
    assert vocabulary_of({}, opened(tmp_path, vocab_size=50304)) == Vocabulary()


@pytest.mark.parametrize(
    ("dataset", "vocab_size", "given", "known"),
    [
        ("owt2", 50304, None, OF_BPE),
        ("/gone/openwebtext2", 50304, None, OF_BPE),
        ("owt2", 256, None, Vocabulary()),
        ("/gone/mine", 50304, OF_BPE, OF_BPE),
        ("/gone/mine", 256, OF_BPE, Vocabulary()),
        ("/gone/mine", 256, Vocabulary("bytes"), Vocabulary("bytes")),
    ],
)
def test_a_known_dataset_or_the_user_tells_where_it_can_be_true(
    dataset: str, vocab_size: int, given: Vocabulary | None, known: Vocabulary
) -> None:
    args = opened(Path(dataset), vocab_size=vocab_size, data_dir="/gone")
    args.dataset = dataset
    assert vocabulary_of({}, args, given) == known


@pytest.mark.parametrize(
    "said", [None, "gpt2", {}, {"tokenizer": 5}, {"tokenizer": None, "end_of_text": 50256}]
)
def test_a_record_that_says_nothing_is_none(tmp_path: Path, said: Any) -> None:
    assert vocabulary_of({"vocabulary": said}, opened(tmp_path)) == Vocabulary()


def test_a_vocabulary_that_is_far_too_large_is_noted() -> None:
    (line,) = note_on_vocabulary(50304, {"vocab_size": 256})
    assert line.startswith("note: the data have 256 tokens") and "--vocab_size 256" in line
    assert not note_on_vocabulary(50304, {"vocab_size": 50257}) and not note_on_vocabulary(50304, {})
