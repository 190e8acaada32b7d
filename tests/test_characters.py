"""Datasets of characters: the text, its vocabulary and its split."""

import json

import numpy as np
import pytest

from data import inspect, open_splits
from data.tokenize import main
from tests.command_lines import code_of
from tests.corpora import BINS

pytestmark = pytest.mark.slow  # each starts worker processes
VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely — and more temperate:\n\U0001f33b" * 3


@pytest.fixture
def characters(tmp_path):
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8")
    code = main(
        ["--name", "shakespeare-char", "--data-dir", str(tmp_path), "--input", str(tmp_path / "verse.txt")]
    )
    assert code == 0
    return tmp_path / "shakespeare-char", json.loads(
        (tmp_path / "shakespeare-char" / "meta.json").read_text()
    )


def test_characters_are_given_back(characters):
    folder, meta = characters
    tokens = np.concatenate([np.fromfile(folder / name, dtype="<u2") for name in BINS])
    assert "".join(meta["characters"][token] for token in tokens) == VERSE


def test_vocabulary_of_characters_is_in_meta(characters):
    assert characters[1]["characters"] == "".join(sorted(set(VERSE)))


def test_last_tenth_of_the_characters_is_for_validation(characters):
    assert np.fromfile(characters[0] / "val.bin", dtype="<u2").size == pytest.approx(len(VERSE) / 10, abs=1)


def test_dataset_of_characters_opens_with_just_its_vocabulary(characters):
    assert open_splits(str(characters[0]), None, 8, len(set(VERSE))).meta["tokenizer"] == "char"


def test_inspect_finds_characters_right(characters):
    assert inspect.main([str(characters[0])]) == 0


def test_damaged_text_of_characters_is_refused(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9" * 20)
    words = ["--name", f"{tmp_path}/a-char", "--input", str(tmp_path / "a.txt")]
    assert (code_of(main, words), f"{tmp_path}/a.txt" in capsys.readouterr().err) == (2, True)


def test_characters_that_are_prepared_again_are_not_prepared_until_all_is_there(
    characters, tmp_path, monkeypatch
):
    from data import characters as module
    from data.bins import is_prepared

    def killed(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", killed)
    main(["--name", str(characters[0]), "--force", "--input", str(tmp_path / "verse.txt")])
    assert not is_prepared(characters[0])
