"""Lion, and the schedules of the training library: resumed to the same bits, extended, refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import config
from errors import UserError
from optim.checkpoint import load_checkpoint
from optim.fit import fit
from optim.lion import Lion
from optim.schedules import LIBRARY, Schedule, make_scheduler
from optim.selftest import differing, leaves
from tests.command_lines import refused
from tests.programs import ROOT, python, run
from tests.test_fit import Numbers, Squared, StopAt, train, without_time

SETTINGS: dict[str, Any] = {
    "opt": "lion",
    "lr": 0.002,
    "beta2": 0.99,
    "weight_decay": 0.2,
    "scheduler": "cosine",
    "warmup_steps": 4,
}


# lion


def test_the_step_of_lion_is_the_rate_whatever_the_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.tensor([[1e-9, -1e-3, 5.0], [-1e6, 0.0, 1.0]])
    before = parameter.detach().clone()
    Lion([parameter], lr=0.5).step()
    assert torch.equal(before - parameter, 0.5 * parameter.grad.sign())


def test_a_parameter_without_gradient_has_no_state_of_lion() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = Lion([parameter], lr=0.5, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2)) and not optimizer.state


@pytest.mark.parametrize("values", [{"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"lr": -1.0}])
def test_lion_refuses_values_that_it_cannot_have(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^lion: .*not"):
        Lion([torch.nn.Parameter(torch.ones(2))], **values)


@pytest.mark.parametrize("scheduler", LIBRARY)
def test_a_paused_training_ends_with_the_bits_of_one_that_never_stopped(
    tmp_path: Path, scheduler: str
) -> None:
    settings = {**SETTINGS, "scheduler": scheduler}
    whole = train(tmp_path / "whole", **settings)
    train(tmp_path / "parts", hooks=[StopAt("pause", 5)], **settings)
    parts = train(tmp_path / "parts", **settings)
    states = [load_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "parts")]
    for state in states:
        del state["args"]
    kept = leaves(states[0])
    assert any(name.endswith("/exp_avg") for name in kept)
    assert differing(kept, leaves(states[1])) == []
    assert without_time(whole) == without_time(parts)


SCRIPT = """
import sys
from tests.test_fit import StopAt, train
from tests.test_library_optimisers import SETTINGS

folder, last = sys.argv[1], int(sys.argv[2])
train(folder, hooks=[StopAt("pause", last)] if last < 12 else [], **SETTINGS)
"""


def launched(tmp_path: Path, processes: int, *calls: tuple[str, int]) -> dict[str, Any]:
    """What the last checkpoint has, of trainings in a folder up to a step."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for folder, last in calls:
        words = [*python(processes), str(script), str(tmp_path / folder), str(last)]
        outcome = run(words, PYTHONPATH=str(ROOT))
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    state = load_checkpoint(tmp_path / calls[-1][0] / "ckpt.pt")
    del state["args"]
    return leaves(state)


@pytest.mark.slow
def test_two_processes_resume_lion_to_the_bits_of_two_that_never_stopped(tmp_path: Path) -> None:
    whole = launched(tmp_path, 2, ("whole", 12))
    assert differing(whole, launched(tmp_path, 2, ("parts", 5), ("parts", 12))) == []


# schedules


def scheduled(scheduler: str, iterations: int = 20, warmup: int = 5, lr: float = 0.01) -> Schedule:
    args = config.add_defaults(
        {"scheduler": scheduler, "iterations": iterations, "warmup_steps": warmup, "lr": lr}
    )
    return make_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), args)


def rates(schedule: Schedule, steps: int) -> list[float]:
    """Used at the next steps."""
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.step()
    return found


@pytest.mark.parametrize("taken", [2, 12])
@pytest.mark.parametrize("scheduler", LIBRARY)
def test_a_training_that_rejoins_has_the_rates_of_one_planned_so_long(scheduler: str, taken: int) -> None:
    short, long = scheduled(scheduler), scheduled(scheduler, 50)
    rates(short, taken)
    long.load_state_dict(short.state_dict(), "rejoin")
    assert rates(long, 50 - taken) == rates(scheduled(scheduler, 50), 50)[taken:]


@pytest.mark.parametrize("scheduler", LIBRARY)
def test_a_training_that_continues_has_no_step_in_its_rates(scheduler: str) -> None:
    short, long = scheduled(scheduler), scheduled(scheduler, 50)
    before = rates(short, 12)[-1]
    long.load_state_dict(short.state_dict(), "continue")
    after = rates(long, 38)
    assert after[0] == pytest.approx(before, rel=0.05) and (after[-1] < 1e-3 or scheduler == "constant")


def test_an_extension_without_its_way_is_refused() -> None:
    with pytest.raises(UserError, match="--iterations 50 is more than the 20"):
        scheduled("cosine", 50).load_state_dict(scheduled("cosine").state_dict())


def test_a_warm_up_that_is_longer_than_the_run_is_told() -> None:
    line = scheduled("cosine", 20, 30).describe()
    assert line.endswith("the warm-up of 30 steps is longer than the run")


def test_rows_tell_the_rate_of_each_update() -> None:
    settings = {**SETTINGS, "opt": "adamw", "log_freq": 1}
    rows = fit(Squared(), Numbers(), steps=12, batch_size=4, device="cpu", **settings).rows
    expected = rates(scheduled("cosine", 12, 4, SETTINGS["lr"]), 12)
    assert [row["lr"] for row in rows if row["kind"] == "train"] == pytest.approx(expected)


# refused


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--opt", "lion", "--beta2", "1"], "--beta1 and --beta2 must be below 1"),
        (["--opt", "lion", "--beta1", "1.5"], "--beta1 must be at most 1"),
        (["--opt", "lion", "--beta1", "-0.1"], "--beta1 must be at least 0"),
        (["--opt", "lyon"], "did you mean lion?"),
        (["--opt", "adafactor", "--adafactor_eps", "0"], "--adafactor_eps must be at least"),
        (["--scheduler", "cosine", "--warmup_steps", "-1"], "--warmup_steps must be at least 0"),
        (["--scheduler", "step"], "--scheduler must be one of cos, linear,"),
        (["--mup_base_width", "0"], "--mup_base_width must be at least 1"),
        (["--mup_base_width", "64.5"], "--mup_base_width"),
        (["--mup_base_width", "64", "--opt", "muon"], "--mup_base_width is for --opt adamw and lion"),
        (["--mup_base_width", "64", "--opt", "adafactor"], "not for adafactor"),
        (["--mup_base_width", "64", "--opt", "sgd"], "not for sgd"),
    ],
)
def test_bad_settings_get_a_line(flags: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (told,) = [text for text in refused(capsys, *flags) if "error" in text]
    assert line in told
