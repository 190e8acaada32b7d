"""The built-in corpora of bytes: what they hold, and that they are made when they are first asked for."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data import built_in
from data.bins import is_prepared
from data.built_in import BUILT_IN
from data.inspect import problems_of
from data.setup import ensure_prepared, is_built_in
from data.split import is_validation
from data.tokenize import main
from errors import UserError
from tests.command_lines import code_of
from tests.corpora import lines, prepare

OF_BYTES = ["lib_code", "lib_docs", "lib_licenses"]
LEAST_VALIDATION = 5_000  # bytes
Corpora = dict[str, list[str]]


@pytest.fixture(scope="module")
def corpora() -> Corpora:
    """The texts of each corpus of bytes, with the docstrings of one package alone: all take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built_in, "DOCUMENTED", ("pyarrow",))
        return {name: [text for _, text in BUILT_IN[name].documents()] for name in OF_BYTES}


def split(name: str, texts: list[str]) -> dict[str, bytes]:
    """Bytes of the two splits: documents one after another."""
    chosen = is_validation(0, len(texts), BUILT_IN[name].val_share)
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for text, is_val in zip(texts, chosen, strict=True):
        parts["val" if is_val else "train"].append(text)
    return {part: "".join(held).encode() for part, held in parts.items()}


def test_no_text_occurs_twice(corpora: Corpora) -> None:
    texts = [text for name in OF_BYTES for text in corpora[name]]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize(
    ("name", "train"), [("lib_code", 10_000_000), ("lib_docs", 1_000_000), ("lib_licenses", 100_000)]
)
def test_both_splits_have_enough_text(corpora: Corpora, name: str, train: int) -> None:
    sizes = {part: len(text) for part, text in split(name, corpora[name]).items()}
    assert sizes["train"] > train and sizes["val"] > LEAST_VALIDATION


def test_licenses_do_not_differ_in_copyright_lines_alone(corpora: Corpora) -> None:
    bodies = [re.sub(r"(?im)^\W*copyright\b.*", "", text) for text in corpora["lib_licenses"]]
    assert len({"".join(body.lower().split()) for body in bodies}) == len(bodies)


def test_licenses_are_the_same_when_they_are_asked_for_again(corpora: Corpora) -> None:
    assert [text for _, text in BUILT_IN["lib_licenses"].documents()] == corpora["lib_licenses"]


def test_docs_hold_pages_of_help_and_descriptions_of_packages(corpora: Corpora) -> None:
    text = "".join(corpora["lib_docs"])
    assert 'The "for" statement' in text and "fundamental package for scientific computing" in text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of datasets in which lib_licenses was asked for."""
    folder = tmp_path_factory.mktemp("datasets")
    ensure_prepared(["lib_licenses"], str(folder))
    return folder / "lib_licenses"


@pytest.mark.parametrize("part", ["train", "val"])
def test_bins_made_on_first_use_are_the_bytes_of_the_documents(
    made: Path, corpora: Corpora, part: str
) -> None:
    tokens = np.fromfile(made / f"{part}.bin", dtype="<u2")
    assert tokens.astype(np.uint8).tobytes() == split("lib_licenses", corpora["lib_licenses"])[part]


def test_meta_says_that_tokens_are_bytes(made: Path) -> None:
    assert json.loads((made / "meta.json").read_text())["tokenizer"] == "bytes"


def test_bins_made_on_first_use_pass_inspection(made: Path) -> None:
    assert problems_of(made) == []


def test_bins_made_by_hand_are_those_of_first_use(made: Path, tmp_path: Path) -> None:
    assert main(["--name", "lib_licenses", "--data_dir", str(tmp_path)]) == 0
    for name in ("train.bin", "val.bin", "meta.json"):
        assert (tmp_path / "lib_licenses" / name).read_bytes() == (made / name).read_bytes()


def test_a_folder_that_a_user_has_prepared_is_used_as_it_is(tmp_path: Path, bpe_cache: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(lines(["one", "two", "three"]))
    assert prepare(tmp_path / "lib_docs", tmp_path / "own.jsonl") == 0
    before = (tmp_path / "lib_docs" / "train.bin").read_bytes()
    ensure_prepared(["lib_docs"], str(tmp_path))
    assert (tmp_path / "lib_docs" / "train.bin").read_bytes() == before


def test_other_datasets_are_not_built_in(tmp_path: Path) -> None:
    ensure_prepared(["wiki"], str(tmp_path))
    assert not is_built_in("wiki") and not is_prepared(tmp_path / "wiki")


def test_two_trainings_that_start_at_once_share_what_one_makes(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        starts = [pool.submit(ensure_prepared, ["lib_licenses"], str(tmp_path)) for _ in range(2)]
        assert [start.result() for start in starts] == [None, None]
    assert problems_of(tmp_path / "lib_licenses") == []


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(UserError, match="cannot prepare /proc/nowhere/lib_licenses"):
        ensure_prepared(["lib_licenses"], "/proc/nowhere")


def put_bin(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"of a user")
    return folder / name


@pytest.mark.parametrize(("there", "missing"), [("train", "val"), ("val", "train")])
def test_one_bin_of_a_user_is_not_overwritten_on_first_use(tmp_path: Path, there: str, missing: str) -> None:
    path = put_bin(tmp_path / "lib_licenses", f"{there}.bin")
    with pytest.raises(UserError, match=f"holds {there}.bin without {missing}.bin"):
        ensure_prepared(["lib_licenses"], str(tmp_path))
    assert path.read_bytes() == b"of a user"


@pytest.mark.parametrize("name", ["mine", "mine-char", "lib_licenses"])
def test_one_bin_of_a_user_is_not_overwritten_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = put_bin(tmp_path / name, "train.bin")
    (tmp_path / "text.txt").write_text("a text " * 9)
    words = ["--name", name, "--data_dir", str(tmp_path), "--input", str(tmp_path / "text.txt")]
    assert code_of(main, words) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert path.read_bytes() == b"of a user"


@pytest.mark.parametrize("name", ["mine-char", "lib_licenses"])
def test_a_preparation_that_was_killed_between_its_bins_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "text.txt").write_text("a text " * 9)
    words = ["--name", name, "--data_dir", str(tmp_path), "--workers", "1"]
    words += ["--input", str(tmp_path / "text.txt")] * (name == "mine-char")
    with monkeypatch.context() as patch:
        for module in ("split", "characters"):
            patch.setattr(f"data.{module}.write_json", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            main(words)
    assert not is_prepared(tmp_path / name) and (tmp_path / name / "val.bin").exists()
    assert main(words) == 0 and is_prepared(tmp_path / name)
