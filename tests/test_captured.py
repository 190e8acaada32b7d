"""Generation through CUDA graphs (optim/captured.py), on an emulated device, whose graphs do their operations
again on the memory of their capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from models.settings import ModelSettings
from models.variants import VARIANTS
from optim.captured import can_be_captured
from optim.generation import Session
from optim.setup import autocaster
from tests.emulated_cuda import emulated_cuda
from tests.emulated_tensors import DEVICE, EmulatedCuda
from tests.helpers import tiny_args, tiny_model

CPU = torch.device("cpu")
FIXED = [name for name, variant in VARIANTS.items() if variant.policy == "fixed"]
MODERN = ("--block", "modern", "--window_pattern", "SL", "--n_kv_head", "2")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCuda]:
    monkeypatch.setattr("optim.captured.BUCKET", 4)  # graphs of several numbers of slots
    with emulated_cuda() as emulated:
        yield emulated


def said(
    where: torch.device, calls: list[list[list[int]]], name: str, *flags: str, dtype: str = "float32"
) -> list[torch.Tensor]:
    """Logits after each call, which gives each sequence some tokens."""
    model = tiny_model(name, *flags)
    session = Session(model, len(calls[0]), where, autocaster(dtype, where), captures=True)
    logits = [session.extend(call) for call in calls]
    # of sequences that got none they mean nothing
    return [of_call[list(map(bool, call))] for of_call, call in zip(logits, calls, strict=True)]


ALIKE = [[[1, 2, 3]], [[4]], [[5]], [[6]], [[7, 8]], [[9]], [[10]]]
RAGGED = [[[1, 2, 3], [4]], [[5], [6]], [[7], []], [[8], [9]], [[1, 2], [3]], [[4], [5]], [[6], [7]]]
LONG = [[[1, 2, 3, 4, 5, 6]], *[[[each]] for each in range(7, 30)]]  # more than the tiny model's 16


@pytest.mark.parametrize("calls", [ALIKE, RAGGED, LONG], ids=["alike", "ragged", "beyond the longest"])
@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("flags", [(), MODERN], ids=["published", "modern"])
def test_captured_steps_give_the_logits_of_the_cpu(
    device: EmulatedCuda, name: str, flags: tuple[str, ...], calls: list[Any]
) -> None:
    found, truth = (said(where, calls, name, *flags) for where in (DEVICE, CPU))
    assert device.calls["replay"] >= 4
    assert all(torch.allclose(mine, theirs, atol=1e-4) for mine, theirs in zip(found, truth, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_captured_steps_in_half_precision_are_near_to_the_cpu(device: EmulatedCuda, dtype: str) -> None:
    found, truth = said(DEVICE, RAGGED, "lncot", dtype=dtype), said(CPU, RAGGED, "lncot")
    assert device.calls["replay"] >= 4
    assert all(torch.allclose(mine, theirs, atol=0.1) for mine, theirs in zip(found, truth, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_only_steps_whose_shapes_are_fixed_are_captured(name: str) -> None:
    settings = ModelSettings.from_args(tiny_args(name))
    assert can_be_captured(settings, DEVICE) == (name in FIXED)
    assert not can_be_captured(settings, CPU)


def test_a_step_that_cannot_be_captured_is_computed_without(
    device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*unused: Any, **more: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    monkeypatch.setattr("optim.generation.log.warning", told.append)
    found, truth = said(DEVICE, ALIKE, "lncot"), said(CPU, ALIKE, "lncot")
    assert all(torch.allclose(mine, theirs, atol=1e-4) for mine, theirs in zip(found, truth, strict=True))
    assert len(told) == 1 and "without CUDA graphs" in told[0]
