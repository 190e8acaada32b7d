"""Micro-batches as CUDA graphs (--cuda_graphs, optim/captured.py), on an emulated device: a capture computes
nothing there, and a graph does its operations again on the memory of their capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from data.batch import Batch, PlainSource
from distributed.world import World
from errors import OwnError
from models.settings import ModelSettings
from models.variants import VARIANTS
from optim.captured import WARM, can_be_captured
from optim.generation import Session
from optim.objectives import NextToken
from optim.optimizers import make_optimizer
from optim.step import OptimizerStep
from tests.emulated_cuda import emulated_cuda
from tests.emulated_tensors import DEVICE, EmulatedCuda, held
from tests.helpers import tiny_args, tiny_model
from tests.programs import command, run
from tests.test_captured import FIXED, MODERN

STEPS = 2 * WARM


@pytest.fixture
def device() -> Iterator[EmulatedCuda]:
    with emulated_cuda() as emulated:
        yield emulated


class Tokens(PlainSource):
    """Of the lengths that a step has in turn; some targets do not count."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def samples(self, step: int, first: int, count: int) -> Batch:
        draw = torch.Generator().manual_seed(first)
        shape = (count, self.lengths[step % len(self.lengths)])
        inputs, targets = torch.randint(0, 50, (2, *shape), generator=draw).unbind()
        targets[0, : first % 5] = -1
        return Batch({"inputs": inputs, "targets": targets}, int((targets != -1).sum()))


def steps_of(graphs: bool, name: str = "lncot", *flags: str, lengths: Any = (16,), **changes: Any) -> Any:
    args = tiny_args(name, *flags, batch_size=2, acc_steps=3, lr=1e-3, cuda_graphs=graphs, **changes)
    network = tiny_model(name, *flags, dropout=args.dropout).train()
    objective = NextToken(network).to(DEVICE)
    return OptimizerStep(args, World(DEVICE), objective, make_optimizer(network, args), Tokens(*lengths))


def taken(steps: OptimizerStep, *numbers: int) -> torch.Tensor:
    """Losses of these steps, and the weights after them."""
    losses = [steps.take(number)[0].reshape(1) for number in numbers]
    return torch.cat([*losses, *(held(p).detach().flatten() for p in steps.model.parameters())])


@pytest.mark.parametrize("flags", [(), MODERN], ids=["published", "modern"])
@pytest.mark.parametrize("name", FIXED)
def test_graphs_train_to_the_same_bits(device: EmulatedCuda, name: str, flags: tuple[str, ...]) -> None:
    found, truth = (taken(steps_of(graphs, name, *flags), *range(STEPS)) for graphs in (True, False))
    assert device.calls["replay"] == 3 * STEPS - WARM
    assert torch.equal(found, truth)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"dropout": 0.2},
        {"opt": "muon"},
        {"activation_checkpointing": "pass"},
        {"lengths": (16, 8)},
    ],
    ids=str,
)
def test_graphs_train_to_the_same_bits_with(device: EmulatedCuda, changes: dict[str, Any]) -> None:
    found, truth = (taken(steps_of(graphs, **changes), *range(STEPS)) for graphs in (True, False))
    assert device.calls["replay"] > 0
    assert torch.equal(found, truth)


def test_a_graph_that_is_captured_later_goes_on_with_the_same_bits(device: EmulatedCuda) -> None:
    """As after a resume, whose first micro-batches are run without one."""
    unbroken = taken(steps_of(True), *range(STEPS))[STEPS // 2 :]
    before, after = steps_of(True), steps_of(True)
    taken(before, *range(STEPS // 2))
    after.model.load_state_dict(before.model.state_dict())
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    assert torch.equal(taken(after, *range(STEPS // 2, STEPS)), unbroken)


def test_samples_between_steps_leave_what_graphs_read_in_its_place(device: EmulatedCuda) -> None:
    found, truth = [], []
    for losses, graphs in ((found, True), (truth, False)):
        steps = steps_of(graphs)
        losses.append(taken(steps, *range(STEPS // 2)))
        Session(steps.model.network, 1, DEVICE).extend([[1, 2, 3]])
        steps.model.train()
        losses.append(taken(steps, *range(STEPS // 2, STEPS)))
    assert device.calls["replay"] == 3 * STEPS - WARM
    assert torch.equal(torch.cat(found), torch.cat(truth))


def test_an_overflow_is_passed_over_and_the_scale_is_halved(device: EmulatedCuda) -> None:
    steps = steps_of(True, dtype="float16")
    taken(steps, 0, 1)
    steps.scaler.load_state_dict({**steps.scaler.state_dict(), "scale": 2.0**60})
    before = taken(steps)
    assert steps.take(2)[1] is None
    assert (steps.meter.overflows, steps.scaler.get_scale()) == (1, 2.0**59)
    assert torch.equal(taken(steps), before)


def test_what_a_graph_reads_is_not_waited_for(device: EmulatedCuda) -> None:
    steps = steps_of(True, dtype="bfloat16")
    taken(steps, 0, 1)
    before = len(device.downloads), len(device.uploads)
    taken(steps, 2)
    waits = len(device.downloads) - before[0], len(device.uploads) - before[1]
    # the losses; and `taken`, which reads no weight through the device
    assert waits == (1, 0)


def test_a_micro_batch_that_cannot_be_captured_is_told_in_one_line(device: EmulatedCuda) -> None:
    steps = steps_of(True)
    steps.model.register_forward_hook(lambda module, given, loss: float(loss.mean.detach()) and None)
    with pytest.raises(OwnError, match="cannot be captured") as told:
        taken(steps, *range(STEPS))
    assert "operation not permitted" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"device": "cpu"}, "--cuda_graphs needs a CUDA device"),
        ({"model": "adm"}, "--cuda_graphs needs passes that all tokens take"),
        ({"objective": "multi_token"}, "--cuda_graphs goes only with --objective next_token"),
        (
            {"activation_checkpointing": "pass", "dropout": 0.1},
            "--cuda_graphs cannot recompute what dropout drew",
        ),
    ],
    ids=str,
)
def test_what_graphs_cannot_train_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    outcome = run(command(tmp_path, **{"model": "lncot", "cuda_graphs": True, **changes}))
    assert (outcome.returncode, outcome.stderr.count("\n")) == (2, 1)
    assert line in outcome.stderr


@pytest.mark.parametrize("name", VARIANTS)
def test_models_that_flags_refuse_are_those_that_cannot_be_captured(name: str) -> None:
    args = tiny_args(name, cuda_graphs=True)
    is_refused = any("cuda_graphs" in problem.flags for problem in config.check(args))
    assert is_refused != can_be_captured(ModelSettings.from_args(args), DEVICE)
