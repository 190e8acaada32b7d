"""bench/modern_blocks.py: from nothing to a report, and what its numbers are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import modern_blocks
from bench.modern_blocks import Interval, Training, macs_of_muon
from data import tokenize

CELLS = ("published-adamw", "modern-muon", "modern-muon-pass")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A tiny comparison's, on a text in bytes."""
    text = tmp_path / "book.txt"
    text.write_text("\n\n".join(f"chapter {number}: the same again" for number in range(200)))
    made = ["--name", "book", "--data_dir", str(tmp_path), "--input", str(text), "--tokenizer", "bytes"]
    assert tokenize.main([*made, "--val-fraction", "0.05"]) == 0
    here = ["--out", str(tmp_path / "out"), "--dataset", "book", "--data_dir", str(tmp_path)]
    return ["--size", "tiny", *here, "--cells", *CELLS]


@pytest.mark.slow
def test_from_nothing_to_a_report(words: list[str], tmp_path: Path) -> None:
    assert modern_blocks.main(words) == 0
    out = tmp_path / "out"
    found = json.loads((out / "modern-blocks.json").read_text())
    assert [(run["cell"], run["rate"]) for run in found["sweep"]] == [
        ("published-adamw", 0.002),
        ("published-adamw", 0.004),
        ("modern-muon", 0.01),
        ("modern-muon", 0.02),
    ]
    at_equal_tokens = [(run["seed"], run["cell"]) for run in found["seeds"] if run["steps"] == 4]
    assert at_equal_tokens == [(seed, cell) for seed in (11, 12) for cell in CELLS]
    assert "| equal tokens |" in (out / "modern-blocks.md").read_text()
    assert (out / "modern-blocks.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_before_the_trainings_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        modern_blocks.main([*words, "--only", "report"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "is not trained yet" in line


def test_interval_of_three_seeds_is_students() -> None:
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half == pytest.approx(4.303 / 3**0.5)


def test_macs_of_muon_are_those_of_its_products() -> None:
    rows, columns = 3, 5
    gram, square, product = rows * columns * rows, rows**3, rows * rows * columns
    assert macs_of_muon((columns, rows)) == 5 * (gram + square + product)


def test_names_hold_what_tells_trainings_apart() -> None:
    assert Training("modern-muon", 0.005, 600, 11).name == "modern-muon_rate0.005_steps600_seed11"
