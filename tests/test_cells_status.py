"""status.py --sweep: the cells of a sweep, begun or not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from config.sweep import Sweep, read_sweep
from tests.cells import begin, fail, finish, folder_of, read, write_sweep
from tests.statuses import job_of, pending, refused, said, write_queue, write_squeue

GRID = {"lr": [1e-3, 2e-3], "n_layer": [2, 4]}


def shown(place: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    return said(["--sweep", str(place / "rates.json"), str(place / "exps"), *words], capsys)


def as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown(place, capsys, "--json"))
    return found


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Cells of which two are finished, one runs, one has failed, one has not begun and one is refused."""
    (tmp_path / "exps").mkdir()
    found = read(tmp_path, grid={"n_head": [4, 5], "lr": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]})
    finish(found.cells[0], 3.0)
    finish(found.cells[1], 2.0)
    begin(found.cells[2], 60)
    fail(found.cells[3], 30, "loss is nan at step 30")
    return found


def test_each_cell_has_its_state(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = [cell["state"] for cell in as_json(tmp_path, capsys)["cells"]]
    assert states == ["finished", "finished", "running", "failed", "not begun", *["refused"] * 5]


def test_totals_add_up(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    totals = as_json(tmp_path, capsys)["totals"]
    assert (totals["cells"], totals["steps_done"], totals["steps_asked"], totals["gpu_hours"]) == (
        10,
        290,
        500,
        8.0,
    )


def test_the_best_value_so_far_is_that_during_training(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = as_json(tmp_path, capsys)["cells"]
    assert [(cell["best"], cell["best_step"], cell["end"]) for cell in cells[1:3]] == [
        (2.5, 100, 2.0),
        (4.0, 50, None),
    ]


def test_the_best_cell_is_marked(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [
        line for line in shown(tmp_path, capsys).splitlines() if "*" in line and line.startswith("   1 ")
    ]
    assert "2.5000*" in line


def test_failed_and_refused_cells_are_named_with_their_lines(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(tmp_path, capsys)
    assert "cell 3 (n_head=4 lr=0.008): failed: loss is nan at step 30" in text
    assert "refused: n_head=5 lr=0.001 and 4 more: --n_embd 64 is not divisible by --n_head 5" in text


def test_two_axes_are_shown_as_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "exps").mkdir()
    for number, cell in enumerate(read(tmp_path, grid=GRID, seeds=[0, 1]).cells[:6]):
        finish(cell, 3.0 - number / 10)
    rows = [line.split() for line in shown(tmp_path, capsys).splitlines() if line.startswith("0.00")]
    assert rows == [["0.001", "2.9500", "2/2", "2.7500", "2/2"], ["0.002", "2.5500*", "2/2", "-", "0/2"]]


def test_a_cell_that_waits_in_the_queue_is_queued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exps").mkdir()
    sweep = read(tmp_path, grid={"lr": [1e-3, 2e-3]})
    name = job_of(folder_of(sweep.cells[1]))
    write_queue(tmp_path / "bin", monkeypatch, pending(name))
    cells = as_json(tmp_path, capsys)["cells"]
    assert [(cell["state"], cell["job"]) for cell in cells] == [("not begun", None), ("queued", "99")]


def test_the_queue_is_asked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exps").mkdir()
    for cell in read(tmp_path, grid=GRID, seeds=[0, 1, 2]).cells:
        begin(cell, 10)
    write_squeue(tmp_path / "bin", f"echo asked >>{tmp_path}/calls", monkeypatch)
    shown(tmp_path, capsys)
    assert (tmp_path / "calls").read_text() == "asked\n"


def test_a_cell_of_fewer_steps_than_the_file_asks_for_is_too_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exps").mkdir()
    finish(read(tmp_path).cells[0], 3.0, iterations=50)
    assert "too short: finished with 50 steps, the file asks for 100" in shown(tmp_path, capsys)


def test_a_folder_has_no_effect_on_a_file_with_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exps").mkdir()
    path = write_sweep(tmp_path, flags={"results_base_folder": "mine"})
    assert "names its own results_base_folder" in refused(
        ["--sweep", str(path), str(tmp_path / "exps")], capsys
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["missing.json"], "status.py: error: missing.json: No such file or directory"),
        (["."], "status.py: error: .: Is a directory"),
        (["a.json", "b", "c"], "status.py: error: --sweep takes one FOLDER, that of the results"),
        (
            ["a.json", "--html", "x"],
            "status.py: error: --html shows folders; pictures of a sweep: python -m report sweep FILE",
        ),
    ],
)
def test_bad_command_lines(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["--sweep", *words], capsys) == line


@pytest.mark.slow
def test_five_hundred_cells_are_shown_within_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exps").mkdir()
    rates = [number / 1e5 for number in range(1, 101)]
    for cell in read(tmp_path, grid={"lr": rates}, seeds=[0, 1, 2, 3, 4]).cells:
        finish(cell, 3.0)
    began = time.process_time()
    shown(tmp_path, capsys)
    assert time.process_time() - began < 10


def test_five_hundred_cells_are_read_within_seconds(tmp_path: Path) -> None:
    rates = [number / 1e5 for number in range(1, 101)]
    path = write_sweep(tmp_path, grid={"lr": rates}, seeds=[0, 1, 2, 3, 4])
    began = time.process_time()
    read_sweep(path)
    assert time.process_time() - began < 4
