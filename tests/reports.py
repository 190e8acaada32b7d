"""Reports on made-up evaluations and trainings of the paper's CoTFormer 12x3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from report.__main__ import main
from report.collect import collect
from report.compare import Report, Result, compare
from tests.summaries import evaluation, training


def report_on(folder: Path) -> Report:
    return compare(collect([folder]))


def filled(folder: Path) -> dict[tuple[str, str], Result]:
    """The rows that have an evaluation, by table and label."""
    return {
        (result.row.table, result.row.label): result for result in report_on(folder).results if result.group
    }


def cot(folder: Path, perplexity: float = 27.0, **changes: Any) -> Path:
    """An evaluation of the paper's CoTFormer 12x3."""
    return evaluation(folder, perplexity, **{"model": "cot", "n_layer": 12, "n_repeat": 3, **changes})


def trained_cot(
    folder: Path,
    perplexity: float = 27.0,
    *,
    recorded: dict[str, Any] | None = None,
    age: float = 0.0,
    evaluated: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A training of it, and its evaluation beside it, which may have settings of its own."""
    run = folder / "owt2" / "cot" / "run"
    trained = {"model": "cot", "n_layer": 12, "n_repeat": 3, **changes}
    training(run, recorded=recorded, **trained)
    return evaluation(
        folder / f"evaluated_{perplexity}",
        perplexity,
        age=age,
        checkpoint=str(run / "ckpt.pt"),
        **{**trained, **(evaluated or {})},
    )


def row_of(folder: Path) -> Result:
    return filled(folder)["Table 1", "CoTFormer 12x3"]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines that a call with exit code 2 prints on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()
