"""Capacity and threshold routing at equal multiply-accumulates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import get_routing
from models.routing import capacities, tokens_kept
from optim.routers import whole_tokens
from tests.command_lines import code_of
from tests.sweeps import ADAPTIVE, PLACES

WORDS = [*PLACES, "--eval_sample_size", "64"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("routing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optim.routers.ROUNDS_SECONDS", 0.0)
        words = ["--checkpoint", str(ADAPTIVE), "--output_dir", str(folder), *WORDS]
        assert code_of(get_routing.main, words) == 0
    found: list[dict[str, Any]] = json.loads((folder / "routing.json").read_text())["rows"]
    return found


def test_both_kinds_of_a_budget_cost_the_same(rows: list[dict[str, Any]]) -> None:
    for capacity, threshold in zip(rows[::2], rows[1::2], strict=True):
        assert (capacity["routing"], threshold["routing"]) == ("capacity", "threshold")
        assert capacity["macs"] == threshold["macs"]
        assert capacity["average_depth"] == pytest.approx(threshold["average_depth"], abs=0.5)


def test_at_full_compute_they_are_one_model(rows: list[dict[str, Any]]) -> None:
    assert rows[-2]["budget"] == 1 and rows[-2]["loss"] == pytest.approx(rows[-1]["loss"], abs=1e-5)


def test_capacities_keep_the_nearest_number_of_tokens() -> None:
    shares = [1.0, 0.74, 0.73, 0.73, 0.001]
    kept, active = [], 32
    for share in capacities(whole_tokens(shares, 32)):
        active = tokens_kept(share, active, in_float32=True)
        kept.append(active)
    assert kept == [32, 24, 23, 23, 0]


def test_every_row_has_seconds(rows: list[dict[str, Any]]) -> None:
    assert all(row["seconds"] > 0 for row in rows)


def test_a_budget_below_one_pass_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--checkpoint", str(ADAPTIVE), "--output_dir", str(tmp_path), "--budgets", "0.01", *WORDS]
    assert code_of(get_routing.main, words) == 2
    said = capsys.readouterr().err.splitlines()
    assert "--budgets 0.01: one pass alone costs" in said[-1] and list(tmp_path.iterdir()) == []
