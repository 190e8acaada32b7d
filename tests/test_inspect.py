"""python -m data.inspect: counts, checksums, documents and lengths of a prepared dataset."""

import errno
import json

import numpy as np
import pytest

from data import inspect
from tests.command_lines import code_of
from tests.corpora import (
    BINS,
    decoded,
    flip,
    lines,
    prepare,
)

pytestmark = pytest.mark.slow  # each starts worker processes


def test_inspect_counts_documents_and_tokens(own, capsys):
    inspect.main([str(own)])
    expected = {
        name: (
            f"{len(decoded(own / f'{name}.bin'))} documents, {(own / f'{name}.bin').stat().st_size // 2:,}"
            " tokens"
        )
        for name in ("train", "val")
    }
    said = dict(
        line.split(maxsplit=1)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("train ", "val "))
    )
    assert {name: said[name].rpartition(", largest")[0] for name in said} == expected


def test_inspect_finds_good_bins_right(own, capsys):
    assert (inspect.main([str(own)]), "checksums  right" in capsys.readouterr().out) == (0, True)


@pytest.mark.parametrize("name", BINS)
def test_inspect_finds_a_flipped_bit(own, capsys, name):
    flip(own / name)
    assert (inspect.main([str(own)]), f"{name} has another SHA-256" in capsys.readouterr().out) == (1, True)


def test_inspect_shows_documents(own, tmp_path, capsys):
    (tmp_path / "other.jsonl").write_bytes(lines(["the very same words"] * 9))
    prepare(own, tmp_path / "other.jsonl", force=True)
    capsys.readouterr()
    inspect.main([str(own)])
    assert capsys.readouterr().out.splitlines().count("the very same words") == 3


def test_inspect_draws_the_lengths(own, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    inspect.main([str(own), "--png", str(tmp_path / "lengths.png")])
    picture = image.imread(tmp_path / "lengths.png")
    assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.02


def test_inspect_tells_the_lengths_where_no_picture_can_be_written(own, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def refuse(path, write):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(inspect, "replace_atomically", refuse)
    assert inspect.main([str(own)]) == 0
    said = capsys.readouterr().out
    assert "lengths    median" in said and "no picture of the lengths" in said


def test_inspect_calls_bins_of_another_tool_undescribed_and_not_wrong(tmp_path, capsys):
    for name in BINS:
        np.arange(1000, dtype="<u2").tofile(tmp_path / name)
    assert (inspect.main([str(tmp_path)]), "checksums  none" in capsys.readouterr().out) == (0, True)


def test_inspect_does_not_take_another_tokenizer_for_gpt2(own, capsys):
    meta = json.loads((own / "meta.json").read_text())
    (own / "meta.json").write_text(json.dumps({**meta, "tokenizer": "llama"}))
    assert inspect.main([str(own)]) == 0
    said = capsys.readouterr().out
    assert "the tokenizer 'llama' is not known here" in said and "--- document" not in said


def test_inspect_refuses_a_folder_that_is_not_prepared(tmp_path, capsys):
    assert (code_of(inspect.main, [str(tmp_path)]), "is not prepared" in capsys.readouterr().err) == (2, True)
