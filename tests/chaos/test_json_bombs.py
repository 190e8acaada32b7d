"""JSON that would fill the memory or the stack: refused in a line, or named among the others."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data.inspect
import data.tokenize
import eval as evaluation
import get_ppl_per_mac
import main as training
import plot_fig4
import plot_fig5
import report.__main__
import status
from config import guarded
from iridis import chain
from tests.chaos import FULL
from tests.chaos.attacks import QUICK, Program, check_job, of_a_run, one_line, works_or_is_refused
from tests.programs import PEER, flags

pytestmark = pytest.mark.slow
GIB = 1 << 30
DEPTH = 100_000


def write_huge(path: Path) -> None:
    with open(path, "wb") as file:  # a gigabyte that takes no room on the disk
        file.write(b'{"a": [')
        file.truncate(GIB)


def write_deep(path: Path) -> None:
    path.write_text("[" * DEPTH + "]" * DEPTH + "\n")


def write_deep_object(path: Path) -> None:
    path.write_text('{"args":' * DEPTH + "1" + "}" * DEPTH + "\n")


BOMBS = {"huge": write_huge, "deep": write_deep, "deep object": write_deep_object}


@contextmanager
def within(seconds: float, mebibytes: int) -> Iterator[None]:
    """What stands below must not take longer, nor this process more memory than it had, at any moment."""

    def kibibytes(name: str) -> int:
        return next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(name)
        )

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    held, began = kibibytes("VmRSS"), time.monotonic()
    yield
    took, more = time.monotonic() - began, (kibibytes("VmHWM") - held) >> 10
    assert took < seconds, "too slow"
    assert more < mebibytes, "too much memory"


@pytest.mark.skipif(not FULL, reason="takes gigabytes; of the full run")
def test_a_huge_file_fills_the_memory_of_a_plain_reader(tmp_path: Path) -> None:
    write_huge(tmp_path / "x.json")
    with (
        pytest.raises(AssertionError, match="too much memory"),
        within(120, 600),
        pytest.raises(ValueError, match="line 1"),
    ):
        json.loads((tmp_path / "x.json").read_text())


def test_a_deep_file_ends_a_plain_reader(tmp_path: Path) -> None:
    write_deep(tmp_path / "x.json")
    with pytest.raises(RecursionError):
        json.loads((tmp_path / "x.json").read_text())


def of_data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "openwebtext2"
    shutil.copytree(PEER / "datasets" / "openwebtext2", folder, dirs_exist_ok=True)
    return folder


def of_the_authors(tmp_path: Path) -> Path:
    folder = tmp_path / "authors"
    shutil.copytree(next(PEER.glob("exps/*/*/official_adm")), folder, dirs_exist_ok=True)
    return folder


# what reads the file, from the folder where it lies, and with which words
REFUSE: dict[str, tuple[str, Callable[[Path], Path], Program, Callable[[Path], list[object]]]] = {
    "config of a training": (
        "config.json",
        lambda path: path,
        training.main,
        lambda path: ["--config", path / "config.json"],
    ),
    "config of an evaluation": (
        "config.json",
        lambda path: path,
        evaluation.main,
        lambda path: ["--config", path / "config.json"],
    ),
    "data of a training": (
        "meta.json",
        of_data,
        training.main,
        lambda path: flags(path / "results", data_dir=path / "data"),
    ),
    "data for people": (
        "meta.json",
        of_data,
        data.inspect.main,
        lambda path: [path / "data" / "openwebtext2"],
    ),
    "summary of a training": ("summary.json", of_a_run, training.main, lambda path: flags(path / "results")),
    "ledger of a training": ("segments.jsonl", of_a_run, training.main, lambda path: flags(path / "results")),
    "metrics of a training": ("metrics.jsonl", of_a_run, training.main, lambda path: flags(path / "results")),
    "ledger before a job": (
        "segments.jsonl",
        of_a_run,
        check_job,
        lambda path: ["--", *flags(path / "results")],
    ),
    "summary of the authors": (
        "summary.json",
        of_the_authors,
        evaluation.main,
        lambda path: ["--checkpoint", path / "authors"],
    ),
    "sweep to go on with": (
        "ppl_per_mac.json",
        of_the_authors,
        get_ppl_per_mac.main,
        lambda path: [
            "--checkpoint",
            path / "authors",
            "--data_dir",
            PEER / "datasets",
            "--eval_sample_size",
            96,
        ],
    ),
    "figure of a sweep": (
        "ppl_per_mac.json",
        lambda path: path,
        plot_fig4.main,
        lambda path: [path / "ppl_per_mac.json", "--output_dir", path / "out"],
    ),
    "description of router weights": (
        "w_meta.json",
        lambda path: path,
        plot_fig5.main,
        lambda path: [path / "w.npz", "--output_dir", path / "out"],
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("reader", REFUSE)
def test_json_that_would_fill_memory_or_stack_is_refused_in_a_line(
    tmp_path: Path, call: Any, reader: str, bomb: str
) -> None:
    name, place, program, words = REFUSE[reader]
    folder = place(tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    BOMBS[bomb](folder / name)
    np.savez(tmp_path / "w.npz", weights=np.full((4, 2), 0.5, dtype="f4"))
    with within(60, 600):
        outcome = call(program, *words(tmp_path))
    assert name in one_line(outcome)


LISTS: dict[str, tuple[str, Program, Callable[[Path], list[object]]]] = {
    **{
        f"table, {name}": (name, status.main, lambda path: [path])
        for name in ("status.json", "summary.json", "segments.jsonl")
    },
    "list, status.json": ("status.json", status.main, lambda path: ["--json", path]),
    "page, segments.jsonl": (
        "segments.jsonl",
        status.main,
        lambda path: ["--html", path / "page.html", path],
    ),
    "report, eval_summary_ckpt.json": (
        "eval_summary_ckpt.json",
        report.__main__.main,
        lambda path: [path, "--output", path / "report"],
    ),
    "report, ppl_per_mac.json": (
        "ppl_per_mac.json",
        report.__main__.main,
        lambda path: [path, "--output", path / "report"],
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("reader", LISTS)
def test_json_that_would_fill_memory_or_stack_is_named_among_many(
    tmp_path: Path, call: Any, reader: str, bomb: str
) -> None:
    name, program, words = LISTS[reader]
    (tmp_path / "run").mkdir()
    BOMBS[bomb](tmp_path / "run" / name)
    with within(60, 600):
        outcome = call(program, *words(tmp_path))
    said = outcome.out + outcome.err + ((tmp_path / "page.html").read_text() if "page" in reader else "")
    assert "Traceback" not in said and name in said, outcome


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["status.json", "summary.json"])
def test_a_job_is_refused_before_it_is_queued_where_its_training_would_refuse_what_its_experiment_holds(
    tmp_path: Path, call: Any, name: str, bomb: str
) -> None:
    of_a_run(tmp_path).mkdir(parents=True)
    BOMBS[bomb](of_a_run(tmp_path) / name)
    with within(60, 600):
        outcomes = (
            call(check_job, "--", *flags(tmp_path / "results")),
            call(training.main, *flags(tmp_path / "results", **QUICK)),
        )
    for outcome in outcomes:
        assert outcome.code == 2 and f"{name} cannot be read" in outcome.err, outcome


@pytest.mark.parametrize("bomb", BOMBS)
def test_the_end_of_a_chain_is_told_whatever_its_status_holds(tmp_path: Path, call: Any, bomb: str) -> None:
    BOMBS[bomb](tmp_path / "status.json")
    with within(60, 600):
        outcome = call(
            lambda words: guarded("chain", lambda: chain.main(words) or 0), tmp_path, "--ended", "a test"
        )
    works_or_is_refused(outcome)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_lock_that_is_no_name_holds_nobody_up(tmp_path: Path, call: Any, bomb: str) -> None:
    of_a_run(tmp_path).mkdir(parents=True)
    BOMBS[bomb](of_a_run(tmp_path) / "lock")
    with within(30, 600):
        assert call(training.main, *flags(tmp_path / "results", **QUICK)).code == 0
