"""A dataset is known by what it holds, not by its name or its number of tokens."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.bins import data_differences, identity_of, label
from errors import UserError


def bins(folder: Path, train: int = 20_000, val: int = 500, seed: int = 0) -> Path:
    """Random tokens without a meta.json."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.RandomState(seed)
    for name, size in (("train", train), ("val", val)):
        draws.randint(0, 64, size).astype("<u2").tofile(folder / f"{name}.bin")
    return folder


def described(folder: Path) -> Path:
    """The meta.json that tokenize.py writes beside the bins."""
    splits: dict[str, Any] = {}
    for name in ("train", "val"):
        raw = (folder / f"{name}.bin").read_bytes()
        splits[name] = {
            "documents": 1,
            "tokens": len(raw) // 2,
            "largest_token": 63,
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
    (folder / "meta.json").write_text(json.dumps({"splits": splits}))
    return folder


def known(folder: Path) -> dict[str, Any]:
    found = identity_of(folder)
    assert found is not None
    return json.loads(json.dumps(found))  # as a checkpoint or a summary gives it back


def test_copies_are_the_same_data(tmp_path: Path) -> None:
    assert data_differences(known(bins(tmp_path / "a")), known(bins(tmp_path / "b" / "other_name"))) == []


def test_both_splits_are_described(tmp_path: Path) -> None:
    assert {name: split["tokens"] for name, split in known(bins(tmp_path)).items()} == {
        "train": 20_000,
        "val": 500,
    }


def test_the_checksum_is_that_of_the_description(tmp_path: Path) -> None:
    assert (
        known(described(bins(tmp_path)))["val"]["sha256"]
        == hashlib.sha256((tmp_path / "val.bin").read_bytes()).hexdigest()
    )


def test_a_dataset_that_is_not_prepared_has_no_identity(tmp_path: Path) -> None:
    assert identity_of(tmp_path) is None


def test_another_number_of_tokens_is_told(tmp_path: Path) -> None:
    line, *_ = data_differences(known(bins(tmp_path / "a", train=7_777)), known(bins(tmp_path / "b")))
    assert (
        line.startswith("the training data differ: the checkpoint's have 20000 tokens (blocks ")
        and "these 7777 tokens (blocks " in line
    )


@pytest.mark.parametrize("describe", [bins, lambda *given, **more: described(bins(*given, **more))])
def test_other_text_of_equal_count_is_told(tmp_path: Path, describe: Any) -> None:
    lines = data_differences(known(describe(tmp_path / "a", seed=1)), known(describe(tmp_path / "b", seed=2)))
    assert [line.split(":")[0] for line in lines] == [
        "the training data differ",
        "the validation data differ",
    ]


def test_another_validation_split_alone_is_told(tmp_path: Path) -> None:
    lines = data_differences(known(bins(tmp_path / "a", val=300)), known(bins(tmp_path / "b")))
    assert [line.split(":")[0] for line in lines] == ["the validation data differ"]


def test_bins_that_were_changed_under_an_old_description_are_told(tmp_path: Path) -> None:
    before = known(described(bins(tmp_path)))
    bins(tmp_path, seed=9)
    assert len(data_differences(known(tmp_path), before)) == 2


def test_one_changed_byte_at_the_end_of_a_bin_is_told(tmp_path: Path) -> None:
    before = known(bins(tmp_path, train=10_000_000))
    with (tmp_path / "train.bin").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert len(data_differences(known(tmp_path), before)) == 1


def test_a_description_that_came_later_changes_nothing(tmp_path: Path) -> None:
    before = known(bins(tmp_path))
    assert data_differences(known(described(tmp_path)), before) == []


@pytest.mark.parametrize(
    ("tokens", "lines"),
    [
        (20_000, []),
        (
            7_777,
            ["the training data differ: the checkpoint's have 7777 tokens, these 20000 tokens (blocks HASH)"],
        ),
    ],
)
def test_older_checkpoints_hold_the_number_of_tokens(tmp_path: Path, tokens: int, lines: list[str]) -> None:
    now = known(bins(tmp_path))
    then = {"data_seed": 2, "next_sample": 8, "train_tokens": tokens}
    assert data_differences(now, then) == [
        line.replace("HASH", now["train"]["blocks"][:12]) for line in lines
    ]


@pytest.mark.parametrize("then", [None, {}, {"train": None}, {"train": []}, {"val": {}}])
def test_what_was_not_recorded_is_no_difference(tmp_path: Path, then: Any) -> None:
    assert data_differences(known(bins(tmp_path)), then) == []


def test_data_that_are_gone_are_no_difference(tmp_path: Path) -> None:
    assert data_differences(None, known(bins(tmp_path))) == []


def test_a_bin_of_20_gigabytes_is_known_in_no_time(tmp_path: Path) -> None:
    bins(tmp_path)
    with (tmp_path / "train.bin").open("r+b") as file:
        file.truncate(20 * 10**9)  # a hole: takes no room
    begin = time.monotonic()
    assert known(tmp_path)["train"]["tokens"] == 10**10
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(("number", "told"), [(errno.EACCES, UserError), (errno.EIO, OSError)])
def test_a_bin_that_cannot_be_read_is_told_in_a_line_and_a_passing_fault_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: type[Exception]
) -> None:
    bins(tmp_path)

    def fail(path: Path, mode: str) -> None:
        raise OSError(number, "no luck", str(path))

    monkeypatch.setattr("data.bins.open", fail, raising=False)
    with pytest.raises(told, match=r"train\.bin.*no luck|no luck.*train\.bin"):
        identity_of(tmp_path)


@pytest.mark.parametrize(
    ("given", "called"),
    [("owt2", "openwebtext2"), ("/a/owt2/", "openwebtext2"), ("/a/mine", "mine"), ("mine", "mine")],
)
def test_names_of_one_dataset_are_one(given: str, called: str) -> None:
    assert label(given) == called
