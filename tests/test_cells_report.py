"""python -m report sweep: one line for each setting, and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from config.sweep import Sweep
from errors import UserError
from report.__main__ import main
from report.sweep import collect, markdown
from report.sweep_cells import evaluation_rows, mean_of, quantity_of
from report.sweep_figures import clipped, is_logarithmic
from tests.cells import begin, fail, finish, read, write_sweep

GRID = {"lr": [1e-3, 2e-3], "n_layer": [2, 4]}


def reported(place: Path) -> tuple[str, dict[str, Any]]:
    """The Markdown and the JSON."""
    words = [str(place / "rates.json"), "--results", str(place / "exps"), "--output", str(place / "out")]
    assert main(["sweep", *words]) == 0
    found = json.loads((place / "out" / "sweep-rates.json").read_text())
    return (place / "out" / "sweep-rates.md").read_text(), found


def files(place: Path) -> set[str]:
    return {path.name for path in (place / "out").iterdir()}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two axes, two seeds: of eight cells six are finished, one has failed, one has not begun."""
    (tmp_path / "exps").mkdir()
    found = read(tmp_path, grid=GRID, seeds=[0, 1])
    for number, cell in enumerate(found.cells[:6]):
        finish(cell, 3.0 - number / 10)
    fail(found.cells[6], 30, "loss is nan at step 30")
    return found


@pytest.mark.slow
def test_the_report_of_two_axes(sweep: Sweep, tmp_path: Path) -> None:
    text, found = reported(tmp_path)
    assert "| **1** | lr=0.002 n_layer=2 | 2 of 2 | **2.5500 ± 0.05** | 3.0500 ± 0.05 | 4.00 |" in text
    assert "- cell 6 (lr=0.002 n_layer=4 seed=0): failed at step 30 of 100: loss is nan at step 30" in text
    assert "- cell 7 (lr=0.002 n_layer=4 seed=1): not begun" in text
    assert [setting["rank"] for setting in found["settings"]] == [3, 2, 1, None]
    pictures = {
        f"sweep-rates-{name}.{end}" for name in ("curves", "axes", "map") for end in ("png", "pdf", "json")
    }
    assert files(tmp_path) == {"sweep-rates.md", "sweep-rates.json", *pictures}


def test_words_one_seed_and_long_labels_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "exps").mkdir()
    entries = [
        {"label": "a $long$ label | " * 6, "model": "base"},
        {"label": "b", "model": "cot", "n_repeat": 3},
    ]
    for cell in read(tmp_path, list=entries, grid={"opt": ["adamw", "lion"]}).cells:
        finish(cell, 3.0)
    reported(tmp_path)
    assert "sweep-rates-map.png" in files(tmp_path)


@pytest.mark.slow
def test_many_settings_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "exps").mkdir()
    flags = {"lr": {"log_uniform": [1e-4, 1e-2]}, "n_layer": {"integer": [2, 8]}}
    for number, cell in enumerate(read(tmp_path, random={"count": 20, "flags": flags}).cells):
        finish(cell, 3.0 + number)
    text, _ = reported(tmp_path)
    assert "no heat map: most combinations of the two axes have no cell" in text


def test_a_sweep_that_nothing_has_begun_is_reported(tmp_path: Path) -> None:
    (tmp_path / "exps").mkdir()
    read(tmp_path, grid=GRID)
    text, _ = reported(tmp_path)
    assert "4 cells: 4 not begun" in text and files(tmp_path) == {"sweep-rates.md", "sweep-rates.json"}


def test_a_failed_seed_is_told_beside_its_settings_mean(sweep: Sweep, tmp_path: Path) -> None:
    finish(sweep.cells[7], 1.0)
    text = markdown(collect(tmp_path / "rates.json", tmp_path / "exps"), [], [])
    assert "| **1** | lr=0.002 n_layer=4 | 1 of 2, 1 failed | **1.0000** |" in text


def test_the_best_of_a_quantity_that_is_better_higher(tmp_path: Path) -> None:
    (tmp_path / "exps").mkdir()
    for number, cell in enumerate(read(tmp_path, grid={"lr": [1e-3, 2e-3]}, track="val_acc").cells):
        rows = [{"kind": "final", "step": 100, "val_acc": 0.1 + number}]
        begin(cell, 100, rows, state="finished")
    assert [setting.label for setting in _ranked(tmp_path)] == ["lr=0.002", "lr=0.001"]


def _ranked(place: Path) -> list[Any]:
    from report.sweep_cells import ranked

    return ranked(collect(place / "rates.json", place / "exps").settings)


def test_the_quantity_of_a_mixture_is_that_of_its_first_source(tmp_path: Path) -> None:
    sweep = read(tmp_path, flags={"dataset": {"a": 0.5, "b": 0.5}})
    assert quantity_of(sweep).name == "val_loss@a"


def test_what_nothing_measures_cannot_be_tracked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rates\.json: track val_los: nothing measures that"):
        quantity_of(read(tmp_path, track="val_los"))


def test_damaged_rows_are_told_and_the_others_read(sweep: Sweep, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"kind":"eval","step":1}\n{"kind":"eval","ste\n{"kind":"train","loss":1}\n{"kind":"final"}\n{"kind":"ev'
    )
    problems: list[str] = []
    rows = evaluation_rows(path, problems)
    assert [row["kind"] for row in rows] == ["eval", "final"]
    assert problems == ["metrics.jsonl: 1 lines of evaluations are no JSON objects"]


def test_mean_and_standard_error() -> None:
    found = mean_of([1.0, 2.0, 3.0])
    assert found is not None and (found.n, found.mean, found.sem) == (3, 2.0, pytest.approx(3**-0.5))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e-4, 1e-3, 1e-2], True),
        ([2, 4, 8, 16], True),
        ([1, 2, 3], False),
        ([0, 1, 10], False),
        (["a", "b"], False),
    ],
)
def test_axes_are_logarithmic_where_their_values_are(values: list[Any], expected: bool) -> None:
    assert is_logarithmic(values) is expected


def test_an_outlier_does_not_set_the_limits(tmp_path: Path) -> None:
    quantity = quantity_of(read(tmp_path))
    assert clipped([3.0, 3.1, 3.2, 3.3, 1000.0], quantity) == (3.0, 3.3)


@pytest.mark.parametrize("words", [[], ["missing.json"], ["{file}", "{file}"], ["{file}", "--outptu", "x"]])
def test_bad_command_lines(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_sweep(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", *(word.replace("{file}", str(path)) for word in words)])
    assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
