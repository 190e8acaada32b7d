"""How often the training loop waits for the device: each transfer to the CPU is one wait.

Counted on an emulated device. What a library or a kernel waits for inside, it cannot see: the part `waits` of
bench/gpu.sh has CUDA itself count, on a card.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from models.variants import ALIASES
from optim.fit import fit
from optim.hooks import Hook
from optim.objectives import NextToken
from tests.emulated_cuda import emulated_cuda
from tests.emulated_tensors import EmulatedCuda
from tests.helpers import tiny_model
from tests.test_gpu_emulated import Tokens

MOST = {"bfloat16": 1, "float16": 2}
STEPS = 3


class Counts(Hook):
    """Of transfers so far, after each step."""

    def __init__(self, device: EmulatedCuda) -> None:
        self.device = device
        self.downloads: list[int] = []
        self.uploads: list[int] = []

    def stepped(self, step: int, loss: float) -> None:
        self.downloads.append(len(self.device.downloads))
        self.uploads.append(len(self.device.uploads))


@cache
def counted(model: str, **settings: Any) -> Counts:
    """Of a training whose every step is logged. Kept, as two promises are of the same one."""
    with emulated_cuda() as device:
        counts = Counts(device)
        network = tiny_model(model).train()
        given = {"batch_size": 2, "acc_steps": 2, "device": "cuda", "log_freq": 1, **settings}
        fit(NextToken(network), Tokens(), steps=STEPS, hooks=[counts], **given)
    return counts


def between(counts: list[int]) -> list[int]:
    """Of each step, but for the first, which makes the optimiser's state."""
    return [after - before for before, after in pairwise(counts[1:])]


OTHERS = [name for name in ("base", "pondernet", *ALIASES) if name not in ("lncot", "adm")]
EACH_MODEL = pytest.mark.parametrize(
    "model", ["lncot", "adm", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)


@EACH_MODEL
def test_a_step_in_bfloat16_waits_for_the_device_once(model: str) -> None:
    assert max(between(counted(model, dtype="bfloat16").downloads)) <= MOST["bfloat16"]


@EACH_MODEL
def test_a_step_in_float16_waits_for_the_device_twice_at_most(model: str) -> None:
    assert max(between(counted(model, dtype="float16").downloads)) <= MOST["float16"]


@EACH_MODEL
def test_nothing_that_a_step_sends_to_the_device_is_waited_for(model: str) -> None:
    assert max(between(counted(model, dtype="bfloat16").uploads)) == 0


@pytest.mark.slow
def test_sgd_waits_no_more_often() -> None:
    """torch's Adafactor does: it asks for the norm of each parameter."""
    assert max(between(counted("lncot", dtype="bfloat16", opt="sgd").downloads)) <= 1


def test_a_wait_that_is_put_into_a_step_is_counted() -> None:
    with emulated_cuda() as device:
        counts = Counts(device)
        network = tiny_model("lncot").train()
        objective = NextToken(network)
        objective.register_forward_hook(lambda module, given, loss: float(loss.mean.detach()) and None)
        fit(
            objective,
            Tokens(),
            steps=STEPS,
            hooks=[counts],
            batch_size=2,
            acc_steps=1,
            device="cuda",
            dtype="bfloat16",
        )
    assert max(between(counts.downloads)) == 2
