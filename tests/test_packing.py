"""Rows of packed documents: what is in them, their index on disk, and trainings on them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import config
from data import packed
from data.bins import open_splits
from data.mixture import Turns
from data.packed import Documents, PackedMixture, PackedSource, Packing
from data.sources import Wanted
from errors import UserError
from optim.selftest import differing
from tests.corpora import write_documents, write_sources
from tests.programs import ONE_LAYER, command, final_state, metrics, start, train, trained, wait_for_step

LENGTH, BUFFER = 31, 20
ROWS = 300
WEIGHTS = {"a": 0.7, "b": 0.3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("datasets")
    write_documents(place, {"a": 200, "b": 150})
    write_sources(place, {"plain": 3000}, "bytes")
    return place


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BLOCK_ROWS", 64)


def source(data_dir: Path, index: Path, seed: int = 1, buffer: int = BUFFER) -> PackedSource:
    splits = open_splits("a", str(data_dir), LENGTH, 256)
    return PackedSource(splits, Packing(buffer, 0, index), seed)


def read(source: Any, first: int = 0, count: int = ROWS) -> np.ndarray[Any, Any]:
    """Whole rows: inputs, and the last target."""
    batch = source.samples(0, first, count)
    return np.concatenate([batch["inputs"].numpy(), batch["targets"].numpy()[:, -1:]], axis=1)


def contents(index: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(index.iterdir())}


# rows


def test_every_piece_of_a_row_begins_as_a_document_does(data_dir: Path, tmp_path: Path) -> None:
    tokens = np.fromfile(data_dir / "a" / "train.bin", dtype="<u2")
    texts = {bytes(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == 0) + 1)}
    rows = read(source(data_dir, tmp_path))
    assert (rows[:, 0] == 0).all()
    for row in rows:
        *whole, last = bytes(row.tolist())[1:].split(b"\0")
        assert {piece + b"\0" for piece in whole} <= texts
        assert any(text.startswith(last) for text in texts)


def test_targets_are_the_inputs_one_token_on(data_dir: Path, tmp_path: Path) -> None:
    batch = source(data_dir, tmp_path).samples(0, 0, ROWS)
    assert batch["inputs"].shape == (ROWS, LENGTH) and batch.count == ROWS * LENGTH
    assert (batch["inputs"][:, 1:] == batch["targets"][:, :-1]).all()


def test_rows_do_not_depend_on_what_was_read_before(data_dir: Path, tmp_path: Path) -> None:
    whole = read(source(data_dir, tmp_path / "one"))
    other = source(data_dir, tmp_path / "two")
    for first in (250, 3, 100, 62, 0):
        assert (read(other, first, 5) == whole[first : first + 5]).all()


def test_rows_are_the_same_with_an_index_and_without(data_dir: Path, tmp_path: Path) -> None:
    with_index = source(data_dir, tmp_path / "index")
    with_index.prepare(100)
    assert (read(with_index) == read(source(data_dir, tmp_path / "none"))).all()


def test_another_seed_has_other_rows(data_dir: Path, tmp_path: Path) -> None:
    assert (read(source(data_dir, tmp_path)) != read(source(data_dir, tmp_path, seed=2))).any()


@pytest.mark.parametrize(
    ("tokens", "begins", "lengths"),
    [
        ([5, 6, 0, 7, 0], [0, 3], [3, 2]),
        ([5, 6, 0, 7], [0, 3], [3, 2]),  # the last without an end
        ([0, 5, 6, 0, 0, 7, 0], [1, 5], [3, 2]),  # empty ones, as where the token precedes documents
    ],
)
def test_documents_of_a_bin(tokens: list[int], begins: list[int], lengths: list[int]) -> None:
    found = Documents.of(np.array(tokens, dtype=np.uint16), 0)
    assert (found.begins.tolist(), found.lengths.tolist()) == (begins, lengths)


@pytest.mark.parametrize(
    ("tokens", "words"), [([5, 6, 7], "holds no end-of-text token"), ([0, 0], "holds no documents")]
)
def test_a_bin_without_documents_is_refused(tokens: list[int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Documents.of(np.array(tokens, dtype=np.uint16), 0)


# the index


def test_a_longer_index_keeps_the_files_of_a_shorter_one(data_dir: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    source(data_dir, index).prepare(100)
    before, times = contents(index), {path: path.stat().st_mtime_ns for path in index.iterdir()}
    source(data_dir, index).prepare(ROWS)
    source(data_dir, tmp_path / "other").prepare(ROWS)
    assert contents(index) == contents(tmp_path / "other") and len(contents(index)) == 5
    assert before.items() <= contents(index).items()
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing", "another's"])
def test_a_damaged_block_is_made_again(data_dir: Path, tmp_path: Path, damage: str) -> None:
    source(data_dir, tmp_path).prepare(ROWS)
    right, rows = contents(tmp_path), read(source(data_dir, tmp_path))
    path = sorted(tmp_path.iterdir())[2]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    changed = {"flipped": raw, "cut": raw[:-8], "empty": b"", "another's": next(iter(right.values()))}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    assert (read(source(data_dir, tmp_path)) == rows).all()  # in a process that only reads
    (line,) = source(data_dir, tmp_path).prepare(ROWS)
    assert contents(tmp_path) == right and ("1 blocks were damaged" in line) == (damage != "missing")


def test_other_settings_have_another_index(data_dir: Path, tmp_path: Path) -> None:
    source(data_dir, tmp_path).prepare(60)
    source(data_dir, tmp_path, buffer=BUFFER + 1).prepare(60)
    source(data_dir, tmp_path, seed=2).prepare(60)
    assert len(contents(tmp_path)) == 3


def test_a_process_that_is_killed_leaves_whole_blocks(data_dir: Path, tmp_path: Path) -> None:
    rows = 64 * 200
    index, work = tmp_path / "index", source(data_dir, tmp_path / "index")
    process = multiprocessing.get_context("fork").Process(target=work.prepare, args=(rows,))
    process.start()
    while not index.is_dir() or len(list(index.glob("*.packed"))) < 3:
        time.sleep(0.001)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    for leftover in index.glob(".*.tmp"):
        os.utime(leftover, (0, 0))
    source(data_dir, index).prepare(rows)
    source(data_dir, tmp_path / "calm").prepare(rows)
    assert contents(index) == contents(tmp_path / "calm")


def test_the_line_tells_rows_and_crops(data_dir: Path, tmp_path: Path) -> None:
    work = source(data_dir, tmp_path)
    (line,) = work.prepare(100)
    block = [work.rows.block(number) for number in (0, 1)]
    dropped = block[0].dropped.sum() + block[1].dropped[: block[1].ends[35]].sum()
    share = 100 * dropped / (dropped + 100 * (LENGTH + 1))
    assert line.startswith("packing: 100 rows of 32 tokens, ")
    assert f"of 200 documents, {share:.3g}% of their tokens cropped; index made in" in line


# a mixture


def mixture(data_dir: Path, index: Path) -> PackedMixture:
    parts = {name: open_splits(name, str(data_dir), LENGTH, 256) for name in WEIGHTS}
    identities = Wanted("a=0.7,b=0.3", str(data_dir)).identities()
    return PackedMixture(parts, WEIGHTS, 1, identities, Packing(BUFFER, 0, index))


def test_a_mixture_reads_each_sources_rows_in_turn(data_dir: Path, tmp_path: Path) -> None:
    work = mixture(data_dir, tmp_path)
    work.prepare(ROWS)
    rows, turns = read(work), Turns([0.7, 0.3])
    which, rank = turns.locate(0, ROWS)
    for number in (0, 1):
        mine = work.rows[number].batch(rank[which == number])
        assert (rows[which == number, :-1] == mine["inputs"].numpy()).all()


def test_a_mixtures_index_reaches_to_its_samples(data_dir: Path, tmp_path: Path) -> None:
    first, second = mixture(data_dir, tmp_path).prepare(ROWS)
    assert first.startswith("packing of a: 210 rows") and second.startswith("packing of b: 90 rows")


# what is refused


def wanted(data_dir: Path, dataset: str) -> Wanted:
    return Wanted.of({"dataset": dataset, "data_dir": str(data_dir), "packing": "best_fit"})


def test_tokens_without_an_end_of_text_are_refused(data_dir: Path) -> None:
    with pytest.raises(UserError) as refused:
        wanted(data_dir, "plain").end_of_text()
    assert "plain/meta.json names none (end_of_text)" in str(refused.value)


def test_sources_whose_documents_end_differently_are_refused(tmp_path: Path) -> None:
    write_documents(tmp_path, {"a": 3})
    write_documents(tmp_path, {"b": 3}, end_of_text=1)
    with pytest.raises(UserError, match="end differently"):
        wanted(tmp_path, "a=0.5,b=0.5").end_of_text()


def test_owt2_ends_documents_as_gpt2_does_without_a_description(tmp_path: Path) -> None:
    write_documents(tmp_path, {"openwebtext2": 3})
    (tmp_path / "openwebtext2" / "meta.json").unlink()
    assert wanted(tmp_path, "owt2").end_of_text() == 50256


def test_random_draws_from_a_mixture_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config.parse_args(["--dataset", "a=0.7,b=0.3", "--packing", "best_fit", "--sampling", "random"])
    assert "error: --packing best_fit has rows in an order" in capsys.readouterr().err


def test_a_buffer_without_packing_is_noted() -> None:
    args: Namespace = config.parse_args(["--packing_buffer", "7"])
    assert "--packing_buffer has no effect: --packing is none" in config.unused_settings(args)


# trainings

SETTINGS = {
    **ONE_LAYER,
    "iterations": 12,
    "eval_freq": 0,
    "log_freq": 1,
    "dataset": "a",
    "packing": "best_fit",
}


def losses(results: Path) -> list[float]:
    return [row["loss"] for row in metrics(results) if row["kind"] == "train"]


@pytest.mark.slow
def test_killed_alone_and_resumed_by_two_processes_in_another_cut(data_dir: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "data_dir": data_dir, "iterations": 40, "save_checkpoint_freq": 3}
    calm, killed = (trained(tmp_path / "calm", **settings), tmp_path / "killed")
    process = start(command(killed, **settings))
    wait_for_step(killed, 5, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 5 <= len(losses(killed)) < 40
    trained(killed, 2, **{**settings, "batch_size": 2, "acc_steps": 4})
    assert losses(killed) == pytest.approx(losses(calm), rel=1e-5)


@pytest.mark.slow
def test_an_extended_training_is_one_that_was_planned_so(data_dir: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "data_dir": data_dir, "scheduler": "none"}
    trained(tmp_path / "long", **settings)
    trained(tmp_path / "short", **{**settings, "iterations": 7})
    trained(tmp_path / "short", **settings, extend="rejoin")
    assert losses(tmp_path / "short") == losses(tmp_path / "long")
    weights = (final_state(tmp_path / name) for name in ("short", "long"))
    assert [name for name in differing(*weights) if name.startswith("model")] == []


def test_a_dataset_without_documents_is_refused_in_one_line(data_dir: Path, tmp_path: Path) -> None:
    outcome: subprocess.CompletedProcess[str] = train(
        tmp_path, **{**SETTINGS, "data_dir": data_dir, "dataset": "plain"}
    )
    (line,) = outcome.stderr.splitlines()
    assert outcome.returncode == 2 and line.startswith("main.py: error: --packing best_fit needs documents")
