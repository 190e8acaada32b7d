"""Draws figures in this process, and what a refusal says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.summaries import curve, evaluation, point, weights


def draw(program: ModuleType, words: list[Any], output: Path) -> dict[str, Any]:
    """Run a plot and return the data beside it."""
    assert program.main([*map(str, words), "--output_dir", str(output)]) == 0
    return json.loads(next(output.glob("fig*.json")).read_text())


def refused(program: ModuleType, words: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a call that ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        program.main(list(map(str, words)))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def figure_inputs(folder: Path) -> dict[int, list[Path]]:
    """What each figure is made from."""
    evaluation(folder / "in", 27.0, model="cot", n_layer=12, n_repeat=3)
    compute = curve(
        folder / "ppl_per_mac.json",
        "adm",
        [
            point(200_000_000_000, 24.0, 0.02, threshold=0.0),
            point(50_000_000_000, 29.0, 0.005, threshold=0.95),
        ],
        [point(45_000_000_000, 30.0, 0.004, passes=1), point(210_000_000_000, 23.9, 0.02, passes=5)],
    )
    scores = weights(folder / "router_weights_ckpt.npz", np.random.default_rng(0).random((1000, 4)))
    return {2: [folder / "in"], 3: [], 4: [compute], 5: [scores]}
