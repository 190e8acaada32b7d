"""Early stopping, speed, floating-point operations, validation, noise and rank, against the reference numbers
of the training library, through the hooks that `fit` and --hook take.
"""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batch import Batch, PlainSource
from distributed.world import World
from optim.early_stopping import EarlyStopping
from optim.evaluation import HeldOut, Measured
from optim.fit import fit
from optim.hooks import Hook
from optim.layer_norms import effective_rank
from optim.monitors import FLOPCounter, GradientNoise, ThroughputMonitor, ValTracker
from optim.objectives import Loss
from optim.tracked import LOWER
from tests.reference.cases import each, of

FILE = "training_library.json.gz"


def each_of(group: str, key: str = "") -> Any:
    """The cases of a group."""
    return each(FILE, "cases", where=of(group, key))


class Scripted(HeldOut):  # as the evaluation without a name has to be
    """An evaluation whose values are written down."""

    name = ""
    quantities: ClassVar = {"val_loss": LOWER}

    def __init__(self, values: list[float]) -> None:
        self.values = list(values)

    def run(self, whole: bool, should_stop: Any, advanced: Any) -> Measured | None:
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        return Measured({"val_loss": value}, f"loss {value}")

    def state(self) -> dict[str, Any]:
        return {}

    def take_up(self, state: Any, args: Any) -> None: ...

    def summary(self, rows: Any, step: int) -> dict[str, Any]:
        return {}


class Numbers(PlainSource):
    def samples(self, step: int, first: int, count: int) -> Batch:
        return Batch({"step": torch.tensor(float(step))}, count)


class Losses(nn.Module):
    """An objective whose losses are written down."""

    may_leave_unused = False

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)
        self.losses = losses

    def forward(self, batch: Batch) -> Loss:
        loss = self.losses[min(int(batch["step"]), len(self.losses) - 1)]
        return Loss(loss + 0 * self.network.weight.sum(), batch.count)


def trained(hooks: list[Hook], steps: int, losses: list[float] | None = None, **settings: Any) -> Any:
    """Rows of the loop over written losses."""
    return fit(
        Losses(losses or [1.0]), Numbers(), steps=steps, batch_size=1, hooks=hooks, device="cpu", **settings
    )


@each_of("early_stopping")
def test_early_stopping_counts_as_the_reference(case: dict[str, Any]) -> None:
    given = case["input"]
    stopping, trace = EarlyStopping(given["patience"], given["min_delta"]), []
    for number, loss in enumerate(map(float, given["eval_losses"]), start=1):
        stop = stopping.evaluated(number, "", {"val_loss": loss})
        trace.append([stopping.best, stopping.wait, stop is not None])
        if stop:
            break
    expected = [[float(best), wait, stop] for best, wait, stop in case["right"]["trace_best_wait_stop"]]
    assert trace == expected
    stops_at = case["right"]["stops_at_evaluation"]
    assert (len(trace) if trace[-1][2] else None) == stops_at


@each_of("early_stopping")
def test_early_stopping_ends_the_loop_where_the_reference_does(case: dict[str, Any]) -> None:
    given = case["input"]
    evaluation = Scripted([float(loss) for loss in given["eval_losses"]])
    stopping = EarlyStopping(given["patience"], given["min_delta"])
    result = trained(
        [stopping], given["max_steps"], evaluations=[evaluation], eval_freq=given["eval_interval"]
    )
    assert result.outcome.step == case["right"]["updates_run"]


class Clock:
    """Gives written times, one a call."""

    def __init__(self, times: list[float]) -> None:
        self.times = iter(times)

    def __call__(self) -> float:
        return next(self.times)


class Kept(Hook):
    """What a monitor has measured after each step."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor
        self.found: dict[int, dict[str, Any]] = {}

    def stepped(self, step: int, loss: float) -> None:
        self.found[step] = dict(self.monitor.metrics)

    def evaluated(self, step: int, name: str, values: Any) -> None:
        self.found[step] = dict(self.monitor.metrics)


def agrees(found: dict[int, dict[str, Any]], right: list[dict[str, Any]], tolerance: float) -> None:
    for step, expected in enumerate(right[: len(found)], start=1):
        assert found[step] == pytest.approx(expected, rel=tolerance, abs=tolerance), step


@each_of("throughput")
def test_throughput_is_that_of_the_reference(case: dict[str, Any]) -> None:
    given = case["input"]
    monitor = ThroughputMonitor(given["log_interval"], given["tokens_per_step"], Clock(given["clock"]))
    kept = Kept(monitor)
    monitor.started(0)
    for step in range(1, len(given["clock"])):
        monitor.stepped(step, 1.0)
        kept.stepped(step, 1.0)
    agrees(kept.found, case["right"], 1e-8)


@each_of("flop_counter")
def test_floating_point_operations_are_those_of_the_reference(case: dict[str, Any]) -> None:
    given, right = case["input"], case["right"]
    counter = FLOPCounter(
        given["flops_per_step"],
        given["log_interval"],
        given["flop_budget"],
        given["hardware_peak_tflops"],
        Clock(given["clock"]),
    )
    kept = Kept(counter)
    result = trained([counter, kept], len(given["clock"]) - 1)
    agrees(kept.found, right["metrics"], 1e-8)
    assert result.outcome.step == right["updates_run"]


@each_of("val_tracker")
def test_the_validation_tracker_is_that_of_the_reference(case: dict[str, Any]) -> None:
    given, right = case["input"], case["right"]
    tracker = ValTracker()
    kept = Kept(tracker)
    trained(
        [tracker, kept],
        len(given["train_losses"]),
        given["train_losses"],
        evaluations=[Scripted(given["evaluations_in_order"])],
        eval_freq=given["eval_interval"],
    )
    agrees(kept.found, right["metrics"], 1e-6)  # losses of the loop are float32
    assert tracker.best == pytest.approx(right["best_after_end"])


@each_of("metric_callbacks", "grad_norms")
def test_the_noise_of_gradients_is_that_of_the_reference(case: dict[str, Any]) -> None:
    noise = GradientNoise(case["input"]["window"])
    found = [noise.add(norm) for norm in case["input"]["grad_norms"]]
    assert found[0] is None and case["right"]["std_over_mean"][0] is None
    assert found[1:] == pytest.approx(case["right"]["std_over_mean"][1:], rel=1e-6, abs=1e-6)


@each_of("metric_callbacks", "matrix")
def test_the_effective_rank_is_that_of_the_reference(case: dict[str, Any]) -> None:
    matrix = torch.tensor(case["input"]["matrix"], dtype=torch.float64)
    assert effective_rank(matrix) == pytest.approx(case["right"]["effective_rank"], abs=1e-6)


class Table(nn.Module):
    """A network of an embedding and a head, as evaluations call it."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.tensor(case["embed"], dtype=torch.float64))
        self.head = nn.Parameter(torch.tensor(case["head"], dtype=torch.float64))

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        logits = self.embed[inputs] @ self.head.T
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        hits = logits.argmax(-1) == targets
        return {
            "token_losses": losses.view_as(targets),
            "hits": hits,
            "average_depth": torch.ones(()),
        }


class Windows:
    """The sequences of a case, each a batch of its own, as their lengths differ."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.sequences = [pair for batch in batches for pair in zip(batch["x"], batch["y"], strict=True)]

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, numbers: np.ndarray) -> Batch:
        x, y = self.sequences[int(numbers[0])]
        return Batch({"inputs": torch.tensor([x]), "targets": torch.tensor([y])}, len(x))


@each_of("evaluation")
def test_evaluations_weigh_by_position_each_time(case: dict[str, Any], tmp_path: Path) -> None:
    given = case["input"]
    args = Namespace(dtype="float32", batch_size=1, eval_batches=0, sequence_length=1)
    world = World(torch.device("cpu"))
    held_out = HeldOut(args, world, Table(given), Windows(given["batches"]), tmp_path, {})
    found = []
    for _ in range(given["calls"]):
        measured = held_out.run(True, lambda: False, lambda: None)
        assert measured is not None and math.isfinite(measured.values["val_loss"])
        found.append(measured.values["val_loss"])
    assert found == pytest.approx(case["right"]["eval_loss_each_call"], abs=1e-5)
