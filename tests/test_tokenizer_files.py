"""data/tokenizer_files.py: the files make the tokens that the model was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.bpe import gpt2
from data.tokenizer_files import tokenizer_files
from data.vocabulary import OF_BPE, Vocabulary

TEXT = "def  f(x):\n\treturn 'naïve — 漢字 🙂'  \r\n\n<|endoftext|> it's 12345's  end "
CHARACTERS = "\n\t abc.é漢🙂"


def loaded(known: Vocabulary) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_files(known, 16)[0]["tokenizer.json"]))


def test_gpt2s_tokens_are_those_of_the_training() -> None:
    tokenizer = loaded(OF_BPE)
    assert tokenizer.encode(TEXT).ids == gpt2().encode(TEXT, allowed_special="all")
    assert tokenizer.decode(tokenizer.encode(TEXT).ids, skip_special_tokens=False) == TEXT
    assert tokenizer.get_vocab_size() == 50257


def test_characters_are_their_numbers_in_the_dataset() -> None:
    tokenizer = loaded(Vocabulary("char", None, CHARACTERS))
    text = "a b\n\n\tc é漢🙂. "
    assert tokenizer.encode(text).ids == [CHARACTERS.index(character) for character in text]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_character_without_a_token_is_refused() -> None:
    with pytest.raises(Exception, match="UNK"):
        loaded(Vocabulary("char", None, CHARACTERS)).encode("abz")


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (Vocabulary(), "neither the checkpoint nor its dataset says"),
        (Vocabulary("mine"), "those of mine"),
        (Vocabulary("char", None, "a\ud800"), "lone surrogates"),
    ],
)
def test_a_vocabulary_that_cannot_be_written_is_told(known: Vocabulary, said: str) -> None:
    files, words = tokenizer_files(known, 16)
    assert files == {} and said in words


def test_ranks_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("data.bpe.CARRIER", "no_such_package")
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})  # what an earlier test had it read
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    files, words = tokenizer_files(OF_BPE, 16)
    assert files == {} and words.startswith("No tokenizer is in this folder: GPT-2's BPE ranks are not in")
