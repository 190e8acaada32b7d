"""Training from Python: the examples of docs/library.md, exact resume, hooks, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from data.batch import Batch, PlainSource
from data.bins import TokenWindows
from data.token_source import TokenSource
from errors import UserError
from files import load_json
from optim.checkpoint import load_checkpoint
from optim.evaluation import Measured
from optim.fit import fit
from optim.hooks import Hook, Run, Stop
from optim.objectives import Loss
from optim.selftest import differing, leaves
from optim.tracked import LOWER
from tests.programs import ROOT, python, run


class Numbers(PlainSource):
    """Sample n is the number n, folded into [0, 1)."""

    def samples(self, step: int, first: int, count: int) -> Batch:
        x = torch.arange(first, first + count, dtype=torch.float32).mul(0.37).remainder(1).unsqueeze(1)
        return Batch({"x": x, "y": 3 * x - 1}, count)


class Squared(nn.Module):
    may_leave_unused = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.1), nn.GELU(), nn.Linear(8, 1))

    def forward(self, batch: Batch) -> Loss:
        return Loss((self.network(batch["x"]) - batch["y"]).square().mean(), batch.count)


class Tokens(TokenSource):
    """Tokens as numbers, for a network of numbers."""

    def samples(self, step: int, first: int, count: int) -> Batch:
        batch = super().samples(step, first, count)
        x, y = (batch[name][:, :1].float() / 64 for name in ("inputs", "targets"))
        return Batch({"x": x, "y": y}, count)

    def items(self, step: int, first: int, count: int) -> int:
        return count


class Scripted:
    """An evaluation whose values are given beforehand, one for each time that it is asked."""

    name = "script"
    quantities: ClassVar = {"score": LOWER}

    def __init__(self, values: list[float], every: int) -> None:
        self.values, self.every, self.asked = values, every, 0

    def run(self, whole: bool, should_stop: Any, advanced: Any) -> Measured | None:
        value = self.values[min(self.asked, len(self.values) - 1)]
        self.asked += 1
        return Measured({"score": value}, f"score {value}")

    def state(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def take_up(self, state: Any, args: Any) -> None:
        self.asked = state["asked"]

    def summary(self, rows: Any, step: int) -> dict[str, Any]:
        return {"scores": [row["score"] for row in rows if row["kind"] == "eval@script"]}


class StopAt(Hook):
    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step = kind, step

    def stepped(self, step: int, loss: float) -> Stop | None:
        return Stop(self.kind, f"step {step} is enough") if step == self.step else None


class Keeps(Hook):
    def state(self) -> dict[str, Any]:
        return {"kept": object()}


def train(folder: Path | None, **changes: Any) -> list[dict[str, Any]]:
    settings = {"steps": 12, "lr": 1e-2, "batch_size": 4, "acc_steps": 2, "device": "cpu", "folder": folder}
    source = changes.pop("source", None) or Numbers()
    return fit(changes.pop("objective", None) or Squared(), source, **{**settings, **changes}).rows


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


@pytest.mark.parametrize("number", range(5))
def test_examples_of_the_page_train(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each after those before it, as they stand there."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks[: number + 1] if number != 1 else blocks[1:2]:
        exec(block, names)
    assert names["rows"][-1]["loss"] < 0.7 * names["rows"][0]["loss"]


def test_weights_are_trained_in_place_without_a_folder() -> None:
    objective = Squared()
    before = objective.network[0].weight.clone()
    train(None, objective=objective)
    assert not torch.equal(before, objective.network[0].weight)


def test_a_paused_training_ends_with_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", hooks=[StopAt("pause", 5)])
    parts = train(tmp_path / "parts")
    states = [load_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "parts")]
    for state in states:
        del state["args"]
    assert differing(*(leaves(state) for state in states)) == []
    assert without_time(whole) == without_time(parts)


def test_a_pause_is_a_stop_by_hand_with_work_left(tmp_path: Path) -> None:
    train(tmp_path, hooks=[StopAt("pause", 5)])
    told = load_json(tmp_path / "outcome.json")
    assert (told["code"], told["kind"], told["step"], told["reason"]) == (83, "paused", 5, "step 5 is enough")


def test_a_complete_training_is_finished(tmp_path: Path) -> None:
    train(tmp_path, hooks=[StopAt("complete", 5)])
    summary = load_json(tmp_path / "summary.json")
    assert (summary["itr"], summary["segments"][-1]["reason"]) == (5, "step 5 is enough")
    rows = train(tmp_path)
    assert max(row["step"] for row in rows) == 5


def test_a_hook_may_ask_for_two_kinds_of_end_only() -> None:
    with pytest.raises(ValueError, match="'complete' or 'pause', not 'now'"):
        Stop("now", "")


def test_unknown_settings_are_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown setting 'weight_decai' \(did you mean weight_decay\?\)"):
        train(None, weight_decai=0.1)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([3.0, 2.0, 2.0, 5.0], (2.0, 6)),
        ([float("nan"), 4.0, float("inf"), 4.5], (4.0, 6)),
        ([1.0, float("nan"), 2.0, 3.0], (1.0, 3)),
    ],
)
def test_best_checkpoint_is_of_the_first_least_finite_value(
    scores: list[float], best: tuple[float, int], tmp_path: Path
) -> None:
    evaluations = [Scripted(scores, 3)]
    train(tmp_path, evaluations=evaluations, eval_freq=3, track="score@script")
    state = load_checkpoint(tmp_path / "best.pt")
    assert (state["best"]["value"], state["itr"]) == best
    assert load_json(tmp_path / "summary.json")["best"]["step"] == best[1]


def test_the_best_value_outlives_a_stop(tmp_path: Path) -> None:
    scores = [3.0, 1.0, 2.0, 5.0]
    tracked = {"eval_freq": 3, "track": "score@script"}
    train(tmp_path, evaluations=[Scripted(scores, 3)], hooks=[StopAt("pause", 7)], **tracked)
    train(tmp_path, evaluations=[Scripted(scores, 3)], **tracked)
    assert load_checkpoint(tmp_path / "best.pt")["itr"] == 6


def test_a_quantity_that_nothing_measures_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--track val_loss: nothing measures that; there are: score@script"):
        train(tmp_path, evaluations=[Scripted([1.0], 3)], eval_freq=3, track="val_loss")


def test_a_hook_whose_state_could_not_be_loaded_is_told_before_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Keeps.state\(\) must return plain values"):
        train(tmp_path, hooks=[Keeps()], save_checkpoint_freq=5)
    assert list(tmp_path.glob("ckpt*")) == []


class OtherNumbers(Numbers):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind}


class Writes(Hook):
    def joined(self, run: Run) -> None:
        self.run = run

    def stepped(self, step: int, loss: float) -> None:
        self.run.reporter.row({"kind": "mine", "step": step, "loss": loss}, [])


def test_a_hook_may_write_rows() -> None:
    rows = train(None, hooks=[Writes()])
    assert [row["step"] for row in rows if row["kind"] == "mine"] == [*range(1, 13)]


class Patience(Hook):
    """Completes the training after so many steps, which it counts."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stepped(self, step: int, loss: float) -> Stop | None:
        self.left -= 1
        return None if self.left else Stop("complete", "out of patience")

    def state(self) -> dict[str, Any]:
        return {"left": self.left}

    def take_up(self, state: Any) -> None:
        self.left = state["left"]


class Scaled(Squared):
    """An objective with a parameter that is not its network's."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, batch: Batch) -> Loss:
        return Loss((self.scale * self.network(batch["x"]) - batch["y"]).square().mean(), batch.count)


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("opt", "lamb", "opt: .*adamw"),
        ("eval_freq", -3, "eval_freq: "),
        ("dtype", "bf16", "dtype: "),
        ("acc_steps", 0, "acc_steps: "),
    ],
)
def test_settings_have_the_bounds_of_the_flags(setting: str, value: Any, line: str) -> None:
    with pytest.raises(UserError, match=f"fit: {line}"):
        train(None, **{setting: value})


def test_settings_of_the_network_and_the_data_are_the_callers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown setting 'n_layer'"):
        train(None, n_layer=3)


def test_a_finished_training_gives_the_network_its_weights(tmp_path: Path) -> None:
    first, second = Squared(), Squared()
    train(tmp_path, objective=first)
    train(tmp_path, objective=second)
    assert torch.equal(first.network[0].weight, second.network[0].weight)


def test_a_resume_on_another_source_is_refused(tmp_path: Path) -> None:
    train(tmp_path, source=OtherNumbers("a"), hooks=[StopAt("pause", 5)])
    with pytest.raises(UserError, match="the data differ: the checkpoint's kind is 'a', this one's 'b'"):
        train(tmp_path, source=OtherNumbers("b"))


def test_what_a_hook_counts_outlives_a_pause(tmp_path: Path) -> None:
    train(tmp_path, hooks=[Patience(8), StopAt("pause", 5)])
    train(tmp_path, hooks=[Patience(8)])
    assert load_json(tmp_path / "summary.json")["itr"] == 8


def test_what_an_objective_has_of_its_own_is_trained() -> None:
    objective = Scaled()
    train(None, objective=objective)
    assert objective.scale.item() != 1.0


def test_what_an_objective_has_of_its_own_is_kept_beside_the_network(tmp_path: Path) -> None:
    objective = Scaled()
    train(tmp_path, objective=objective)
    state = load_checkpoint(tmp_path / "ckpt.pt")
    assert state["model"].keys() == objective.network.state_dict().keys()
    assert torch.equal(state["objective"]["scale"], objective.scale)


def test_what_an_objective_has_of_its_own_resumes_exactly(tmp_path: Path) -> None:
    train(tmp_path / "unbroken", objective=Scaled())
    train(tmp_path / "paused", objective=Scaled(), hooks=[StopAt("pause", 5)])
    train(tmp_path / "paused", objective=Scaled())
    unbroken, paused = (
        leaves(load_checkpoint(tmp_path / name / "ckpt.pt")) for name in ("unbroken", "paused")
    )
    assert [name for name in differing(unbroken, paused) if not name.startswith("/args")] == []


class Centred(Scaled):
    """It also counts, in buffers of its own and of a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.normed = nn.BatchNorm1d(1)

    def forward(self, batch: Batch) -> Loss:
        if self.training:
            self.steps += 1
        return Loss((self.normed(self.network(batch["x"])) - batch["y"]).square().mean(), batch.count)


def test_what_an_objective_counts_resumes_exactly(tmp_path: Path) -> None:
    train(tmp_path / "unbroken", objective=Centred())
    train(tmp_path / "paused", objective=Centred(), hooks=[StopAt("pause", 5)])
    train(tmp_path / "paused", objective=Centred())
    unbroken, paused = (load_checkpoint(tmp_path / name / "ckpt.pt") for name in ("unbroken", "paused"))
    assert unbroken["objective"].keys() >= {"steps", "normed.running_mean", "normed.weight"}
    assert differing(leaves(unbroken["objective"]), leaves(paused["objective"])) == []


def test_a_finished_training_gives_the_objective_what_it_has_of_its_own(tmp_path: Path) -> None:
    first, again = Scaled(), Scaled()
    train(tmp_path, objective=first)
    train(tmp_path, objective=again)
    assert torch.equal(first.scale, again.scale)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (Squared, "the checkpoint is of another objective: scale is only in one of the two"),
        (lambda: Scaled(2), r"the objective's scale is \(1,\) in the file, \(2,\) in this run"),
    ],
)
def test_a_checkpoint_of_another_objective_is_refused(tmp_path: Path, other: Any, line: str) -> None:
    train(tmp_path, objective=Scaled(), hooks=[StopAt("pause", 5)])
    with pytest.raises(UserError, match=line):
        train(tmp_path, objective=other())


def test_a_frozen_parameter_stays_as_it_is(tmp_path: Path) -> None:
    objective = Scaled()
    objective.scale.requires_grad_(False)
    objective.network[0].weight.requires_grad_(False)
    before = objective.network[0].weight.clone()
    train(tmp_path, objective=objective, weight_decay=0.5)
    assert torch.equal(objective.network[0].weight, before)
    assert "objective" not in load_checkpoint(tmp_path / "ckpt.pt")


def test_a_best_value_whose_file_a_kill_took_is_written_on_the_resume(tmp_path: Path) -> None:
    """As between the row of an evaluation and best.pt."""
    tracked = {"eval_freq": 3, "track": "score@script"}
    train(tmp_path, evaluations=[Scripted([3.0, 1.0, 2.0], 3)], hooks=[StopAt("pause", 6)], **tracked)
    (tmp_path / "best.pt").unlink()
    train(tmp_path, evaluations=[Scripted([3.0, 1.0, 2.0], 3)], **tracked)
    assert load_checkpoint(tmp_path / "best.pt")["itr"] == 6


@pytest.mark.parametrize(
    ("changes", "line"), [({"step": 3}, "the training data differ"), ({"seed": 2}, "order_seed is 1")]
)
def test_other_tokens_in_memory_are_refused(tmp_path: Path, changes: dict[str, int], line: str) -> None:
    def source(step: int = 1, seed: int = 1) -> Tokens:
        return Tokens(TokenWindows((np.arange(200) * step % 64).astype("<u2"), 16), seed)

    train(tmp_path, source=source(), hooks=[StopAt("pause", 5)])
    with pytest.raises(UserError, match=line):
        train(tmp_path, source=source(**changes))


SCRIPT = """
import sys
from tests.test_fit import Numbers, Patience, Scripted, Squared, StopAt, fit

fitted = fit(Squared(), Numbers(), steps=9, lr=1e-2, batch_size=4, acc_steps=2, device="cpu",
             folder=sys.argv[1], evaluations=[Scripted([2.0, 1.0, 3.0], 3)], eval_freq=3,
             track="score@script",
             hooks=[Patience(50), StopAt("complete", 8)])
print(f"<{fitted.outcome.kind}>", flush=True)
"""


@pytest.mark.slow
def test_two_processes_train_evaluate_and_stop_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [*python(processes=2), str(script), str(tmp_path / "run")]
    outcome = run(launcher, PYTHONPATH=str(ROOT))
    assert outcome.returncode == 0 and outcome.stdout.count("<complete>") == 2, (
        outcome.stdout + outcome.stderr
    )
    assert load_checkpoint(tmp_path / "run" / "best.pt")["itr"] == 6
    assert load_json(tmp_path / "run" / "summary.json")["itr"] == 8
