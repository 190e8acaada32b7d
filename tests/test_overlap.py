"""How much of the validation text is in the training text, against a search by brute force; and built-in
corpora without such text.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import overlap, setup, shared_runs
from data.apart import TEXT, make_apart
from data.bins import TOKEN, ends_of, is_prepared
from data.built_in import BuiltIn
from data.inspect import problems_of
from data.overlap import measure
from data.setup import ensure_prepared
from data.shared_runs import default_length
from data.split import is_validation
from errors import UserError
from tests.command_lines import code_of

END = 0  # of a document


def tokens(values) -> np.ndarray:
    return np.array(values, dtype=TOKEN)


def by_hand(train: np.ndarray, val: np.ndarray, length: int, has_ends: bool) -> int:
    there = {tuple(train[place : place + length]) for place in range(train.size - length + 1)}
    windows = [tuple(val[place : place + length]) for place in range(val.size - length + 1)]
    return sum(window in there and not (has_ends and END in window) for window in windows)


@given(
    train=st.lists(st.integers(0, 2), min_size=1, max_size=300),
    val=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    length=st.integers(1, 9),
    has_ends=st.booleans(),
)
def test_it_counts_what_a_search_by_hand_finds(train, val, length, has_ends):
    train, val = tokens(train), tokens(val)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_runs, "SLICE", 32)
        found = measure(train, val, ends_of(val, END) if has_ends else None, length)
    assert found.shared_windows == by_hand(train, val, length, has_ends)


def test_runs_are_found_wherever_they_stand():
    """At the beginning, across two slices, and at the end of the training text."""
    random = np.random.default_rng(0)
    train = random.integers(0, 50257, 3 * shared_runs.SLICE).astype(TOKEN)
    places = (0, shared_runs.SLICE - 30, train.size - 60)
    noise = random.integers(0, 50257, 60).astype(TOKEN)
    val = np.concatenate([np.concatenate([train[place : place + 60], noise]) for place in places])
    found = measure(train, val, None, 50)
    assert found.shared_windows == 3 * 11


def test_a_hash_that_two_windows_share_is_no_run(monkeypatch):
    monkeypatch.setattr(
        shared_runs.Hasher,
        "hashes",
        lambda self, part: np.zeros(max(0, part.size - self.length + 1), dtype=np.uint64),
    )
    with pytest.raises(UserError, match="no hash of 8 tells the windows of 2 tokens apart"):
        measure(tokens([1, 2, 3]), tokens([1, 2, 1]), None, 2)
    assert measure(tokens([3, 4, 5]), tokens([1, 2]), None, 2).shared_windows == 0


def test_documents_are_counted_by_their_ends():
    val = tokens([5, 6, 7, END, 5, 6, 8, END, 9, END])
    found = measure(tokens([1, 5, 6, 7, END, 5]), val, ends_of(val, END), 3)
    assert (found.windows, found.shared_windows, found.documents, found.shared_documents) == (2, 1, 2, 1)
    assert found.share == 0.5


@pytest.mark.parametrize(("tokenizer", "length"), [("gpt2", 50), ("bytes", 200), ("char", 200), (None, 50)])
def test_a_window_of_bytes_is_as_long_as_one_of_word_pieces(tokenizer, length):
    assert default_length(tokenizer) == length


# the program


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    tokens(range(1000)).tofile(folder / "train.bin")
    tokens([*range(500, 560), *range(2000, 2060)]).tofile(folder / "val.bin")
    return folder


def run(*words: object) -> int:
    return overlap.main(list(map(str, words)))


def test_the_program_says_how_much_and_writes_it(dataset: Path, tmp_path: Path, capsys):
    assert run(dataset, "--length", 50, "--output", tmp_path / "text.json") == 0
    assert "11 of them are in the training text, 15.493%" in capsys.readouterr().out
    found = json.loads((tmp_path / "text.json").read_text())
    assert (found["dataset"], found["train_tokens"], found["overlap"]["shared_windows"]) == ("mine", 1000, 11)


def test_the_same_bins_are_not_read_again_and_others_are(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "text.json"
    run(dataset, "--output", output)
    before = output.stat().st_mtime_ns
    run(dataset, "--output", output)
    assert output.stat().st_mtime_ns == before
    tokens(range(200)).tofile(dataset / "val.bin")
    run(dataset, "--output", output)
    assert json.loads(output.read_text())["overlap"]["share"] == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere/at/all"], "is not prepared"),
        (["stdlib", "--length", "0"], "--length 0: must be between 1 and 512"),
        (["stdlib", "--length", "513"], "--length 513: must be between 1 and 512"),
        (["stdlib", "--lenth", "5"], "unknown flag --lenth (did you mean --length?)"),
        ([], "dataset"),
    ],
)
def test_a_wrong_call_is_one_line(words: list[str], line: str, capsys):
    assert code_of(overlap.main, words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and line in said


def test_a_damaged_bin_is_one_line(dataset: Path, capsys):
    (dataset / "val.bin").write_bytes(b"odd")
    assert code_of(overlap.main, [str(dataset)]) == 2
    assert "3 bytes: not a file of uint16 tokens" in capsys.readouterr().err


# corpora without validation text that is in their training text


def corpus(texts: list[str], share: float = 0.1, tokenizer: str = "bytes") -> BuiltIn:
    return BuiltIn(lambda: iter([(str(number), text) for number, text in enumerate(texts)]), tokenizer, share)


def documents(count: int = 60) -> list[str]:
    random = np.random.default_rng(1)
    return ["".join(chr(97 + each) for each in random.integers(0, 26, 400)) for _ in range(count)]


def test_documents_that_share_a_run_are_left_out_and_counted(tmp_path: Path):
    texts = documents()
    chosen = np.flatnonzero(is_validation(0, len(texts), 0.3))
    trained = next(number for number in range(len(texts)) if number not in chosen)
    texts[chosen[0]] = texts[chosen[0]][:100] + texts[trained][:200]
    texts[chosen[1]] = texts[chosen[1]][:100] + texts[trained][:199]
    text = make_apart(corpus(texts), tmp_path, print)
    assert (text["dropped_documents"], text["dropped_tokens"]) == (1, 300)
    assert text["validation_documents"] == chosen.size - 1
    assert json.loads((tmp_path / TEXT).read_text()) == text


def test_nothing_of_it_is_shared_afterwards_and_meta_is_right(tmp_path: Path, capsys):
    texts = documents()
    make_apart(corpus([text + texts[0][:250] for text in texts[:30]] + texts[30:]), tmp_path, print)
    assert problems_of(tmp_path) == []
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert "0 of them are in the training text" in said and "documents of validation" in said


def test_a_corpus_of_which_nothing_would_be_left_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="every validation document shares 200 tokens"):
        make_apart(corpus([documents(1)[0]] * 30), tmp_path, print)
    assert list(tmp_path.glob("*.bin")) == [] and list(tmp_path.glob(".*.tmp")) == []


def test_it_is_made_when_it_is_first_asked_for(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(setup.BUILT_IN, "lib_licenses", corpus(documents()))
    ensure_prepared(["lib_licenses-apart"], str(tmp_path))
    assert is_prepared(tmp_path / "lib_licenses-apart")
