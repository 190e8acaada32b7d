"""Weights & Biases: what it gets of a metrics row, and where."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from optim.reporting import account, charts

TRAIN = {
    "kind": "train",
    "step": 3,
    "loss": 2.0,
    "lr": 0.1,
    "time": {"unix": 1.0, "tokens_per_second": 50.0, "peak_memory_mib": 7.0, "share_of_peak_flops": None},
}
EVAL = {"kind": "eval", "step": 3, "val_loss": 2.0, "val_pp": 7.4, "val_acc": 0.5, "max_grad_norm": 0.25}
FINAL = {"kind": "final", "step": 3, "val_loss": 2.0, "val_pp": 7.4, "val_acc": 0.5}


def test_throughput_and_memory_are_charts() -> None:
    assert charts(TRAIN) == {
        "train/loss": 2.0,
        "train/lr": 0.1,
        "train/tokens_per_second": 50.0,
        "train/peak_memory_mib": 7.0,
        "lr": 0.1,
    }


@pytest.mark.parametrize(
    ("row", "name", "value"),
    [
        (TRAIN, "lr", 0.1),
        (EVAL, "val/loss", 2.0),
        (EVAL, "val/perplexity", 7.4),
        (EVAL, "train/max_grad_norm", 0.25),
        (FINAL, "val/final-ppl", 7.4),
    ],
)
def test_charts_have_the_names_of_the_reference_repository_too(
    row: dict[str, Any], name: str, value: float
) -> None:
    assert charts(row)[name] == value


def test_our_own_names_stay() -> None:
    assert charts(EVAL)["eval/val_loss"] == 2.0


@pytest.mark.parametrize(
    ("project", "entity", "env", "expected"),
    [
        ("my-project", None, {}, ("my-project", None)),
        ("my-project", None, {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team"}, ("theirs", "team")),
        ("given", "us", {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team"}, ("given", "us")),
    ],
)
def test_project_and_team_of_the_environment_count_where_no_flag_is_given(
    monkeypatch: pytest.MonkeyPatch,
    project: str,
    entity: str | None,
    env: dict[str, str],
    expected: tuple[str, str | None],
) -> None:
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert account(Namespace(wandb_project=project, wandb_entity=entity)) == expected
