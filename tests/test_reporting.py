"""Weights & Biases as the environment has it."""

from __future__ import annotations

from argparse import Namespace

import pytest

from optim.reporting import account


@pytest.mark.parametrize(("project", "entity", "env", "expected"), [
    ("my-project", None, {}, ("my-project", None)),
    ("my-project", None, {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team"}, ("theirs", "team")),
    ("given", "us", {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team"}, ("given", "us")),
])
def test_project_and_team_of_the_environment_count_where_no_flag_is_given(
        monkeypatch: pytest.MonkeyPatch, project: str, entity: str | None, env: dict[str, str], expected: tuple[str, str | None]) -> None:
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    told = account(Namespace(wandb_project=project, wandb_entity=entity))
    assert (told["project"], told["entity"]) == expected
