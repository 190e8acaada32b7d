"""--track: best.pt of a training by main.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optim.selftest import differing, leaves
from tests.programs import command, folder, metrics, start, train, trained, wait_for_step

pytestmark = pytest.mark.slow

TRACKED = {
    "iterations": 12,
    "eval_freq": 3,
    "save_checkpoint_freq": 4,
    "keep_checkpoints": 1,
    "track": "val_loss",
}


def best(results: Path) -> dict[str, Any]:
    return torch.load(folder(results) / "best.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("whole")
    trained(results, **TRACKED)
    return results


def test_best_checkpoint_is_of_the_step_with_the_least_loss(whole: Path) -> None:
    losses = {row["step"]: row["val_loss"] for row in metrics(whole) if row["kind"] == "eval"}
    assert best(whole)["itr"] == min(losses, key=lambda step: losses[step])


def test_best_checkpoint_is_the_same_after_a_kill(whole: Path, tmp_path: Path) -> None:
    process = start(command(tmp_path, **TRACKED))
    wait_for_step(tmp_path, 6, process)
    process.kill()
    process.wait()
    trained(tmp_path, **TRACKED)
    states = [best(results) for results in (whole, tmp_path)]
    for state in states:
        del state["args"]
    assert differing(*(leaves(state) for state in states)) == []


def test_best_checkpoint_is_evaluated_and_is_no_place_to_begin_again(whole: Path, tmp_path: Path) -> None:
    outcome = train(whole, **{**TRACKED, "iterations": 24, "extend": "continue", "use_pretrained": "best.pt"})
    assert outcome.returncode == 2 and "copy it to the ckpt_N.pt of its step" in outcome.stderr


def test_tracking_needs_evaluations(tmp_path: Path) -> None:
    outcome = train(tmp_path, **{**TRACKED, "eval_freq": 0})
    assert outcome.returncode == 2 and "--track val_loss needs evaluations during training" in outcome.stderr
