"""The branches that only a CUDA device enters, entered on one that is emulated (tests/emulated_cuda.py)."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.gpu import checks
from data import TokenWindows
from data.batch import Batch, PlainSource
from distributed import health
from distributed.world import World, join, pick_device
from errors import UserError
from models.attention import (
    AttentionPlan,
    KeyRange,
    Tile,
    attend,
    visible,
    window_tiles,
)
from models.loss import linear_cross_entropy
from models.losses import _sums_so_far
from models.transformer import Transformer
from models.trials import flash_trouble
from models.variants import VARIANTS
from optim import checkpoint
from optim.evaluate import evaluate
from optim.fit import fit
from optim.generation import Session
from optim.hooks import Hook, Stop
from optim.objectives import NextToken
from optim.optimizers import make_optimizer
from optim.reporting import peak_flops, peak_memory_mib
from optim.routers import factors_at
from optim.scoring import Scorer
from optim.selftest import differing, leaves
from optim.setup import autocast_dtype, autocaster, set_precision
from optim.step import OptimizerStep
from tests.emulated_cuda import emulated_cuda
from tests.emulated_tensors import DEVICE, DeviceTensor, EmulatedCuda, held
from tests.helpers import tiny_args, tiny_model, tokens

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# what rounding to a dtype leaves of the relative error of a sum of products
ROUNDING = {"bfloat16": 6e-3, "float16": 8e-4}
CPU = torch.device("cpu")
PASSES, LENGTH, HEAD = 3, 40, 16
ALIKE = [name for name, variant in VARIANTS.items() if variant.attends == "all"]


@pytest.fixture
def device() -> Iterator[EmulatedCuda]:
    with emulated_cuda() as emulated:
        yield emulated


@pytest.fixture(params=HALF)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def off(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative to the size of the truth."""
    return float((held(found.detach()).double() - truth.detach()).norm() / truth.detach().norm())


# attention


def attention_inputs(dtype: torch.dtype, where: torch.device | str) -> list[torch.Tensor]:
    """A query, and keys and values of each pass."""
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 2, LENGTH, HEAD, generator=draw).mul(1.5).to(dtype) for _ in range(1 + 2 * PASSES)]
    return [each.to(where).requires_grad_() for each in made]


def attention(inputs: list[torch.Tensor], plan: AttentionPlan) -> list[torch.Tensor]:
    """Output, and the gradients of all inputs."""
    pairs = list(zip(inputs[1::2], inputs[2::2], strict=True))
    out = attend(inputs[0], pairs, plan, 0.0)
    return [out, *torch.autograd.grad(out.double().pow(2).sum(), inputs)]


def causal_plan() -> AttentionPlan:
    whole = slice(None)
    return AttentionPlan(None, (Tile(whole, tuple(KeyRange(i, whole, "causal") for i in range(PASSES))),))


def dense_plan() -> AttentionPlan:
    positions = torch.arange(LENGTH).unsqueeze(0)
    return AttentionPlan(None, mask=visible(positions, positions.repeat(1, PASSES), None))


def test_attention_by_passes_is_that_over_all_keys(device: EmulatedCuda, dtype: str) -> None:
    found = attention(attention_inputs(HALF[dtype], "cuda"), causal_plan())
    exact = [each.detach().double().requires_grad_() for each in attention_inputs(HALF[dtype], "cpu")]
    truth = attention(exact, dense_plan())
    assert max(off(mine, theirs) for mine, theirs in zip(found, truth, strict=True)) < ROUNDING[dtype]


def test_attention_by_passes_gives_the_dtype_of_its_inputs(device: EmulatedCuda, dtype: str) -> None:
    found = attention(attention_inputs(HALF[dtype], "cuda"), causal_plan())
    assert {each.dtype for each in found} == {HALF[dtype]}


def test_attention_by_passes_calls_a_kernel_a_pass_and_waits_for_none(
    device: EmulatedCuda, dtype: str
) -> None:
    attention(attention_inputs(HALF[dtype], "cuda"), causal_plan())
    assert device.calls == {"flash": PASSES, "flash backward": PASSES}
    assert device.downloads == []


def test_attention_in_a_window_is_that_under_a_mask(device: EmulatedCuda, dtype: str) -> None:
    positions, window = torch.arange(LENGTH).unsqueeze(0), 15  # of two tiles, the last one is shorter
    dense = AttentionPlan(None, mask=visible(positions, positions, window))
    inputs = attention_inputs(HALF[dtype], "cuda")[:3]
    found = attention(inputs, AttentionPlan(None, window_tiles(LENGTH, window)))
    truth = attention([held(each.detach()).double().requires_grad_() for each in inputs], dense)
    assert max(off(mine, theirs) for mine, theirs in zip(found, truth, strict=True)) < ROUNDING[dtype]


@pytest.mark.parametrize("head_width", [8, 64, 256])
def test_flash_attention_is_used_in_windows(device: EmulatedCuda, dtype: str, head_width: int) -> None:
    assert flash_trouble(DEVICE, HALF[dtype], head_width, in_window=True) is None


@pytest.mark.parametrize("head_width", [8, 64, 256])
def test_flash_attention_is_used_in_half_precision(device: EmulatedCuda, dtype: str, head_width: int) -> None:
    assert flash_trouble(DEVICE, HALF[dtype], head_width) is None


@pytest.mark.parametrize(
    ("name", "head_width"), [("float32", 64), ("bfloat16", 12), ("float16", 20), ("bfloat16", 264)]
)
def test_flash_attention_is_not_used_where_the_kernels_cannot(
    device: EmulatedCuda, name: str, head_width: int
) -> None:
    assert flash_trouble(DEVICE, getattr(torch, name), head_width) is not None


def test_kernels_that_give_other_numbers_are_not_used(
    device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.emulated_kernels.scores_of", lambda q, k, is_causal, scale: q.float() @ k.float().mT
    )
    assert flash_trouble(DEVICE, torch.bfloat16, 16) is not None


# whole models


def rows_told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Rows of a check, by name."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {line["row"]: line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("check", [checks.equal, checks.losses])
def test_every_model_computes_the_same_as_on_the_cpu(
    device: EmulatedCuda, dtype: str, check: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check(Namespace(device="cuda", dtype=dtype, tiny=True))
    rows = rows_told(capsys)
    assert len(rows) >= len(VARIANTS) - 1
    assert [row for row in rows.values() if row["verdict"] != "PASS"] == []


def forward(model: Transformer, device: str, dtype: str, **more: Any) -> dict[str, Any]:
    idx, targets = tokens(2, 16), tokens(2, 16, seed=1)
    with torch.autocast(device, dtype=HALF[dtype]):
        return model(idx.to(device), targets=targets.to(device), **more)


@pytest.mark.parametrize("name", ALIKE)
def test_passes_over_the_same_tokens_go_through_flash_attention(
    device: EmulatedCuda, dtype: str, name: str
) -> None:
    model = tiny_model(name, n_repeat=PASSES).to("cuda")
    device.calls.clear()
    forward(model, "cuda", dtype)
    middle = model.settings.stack_sizes[1]
    probe = PASSES - 1  # flash_trouble tries two passes; the first pass of a run is plain causal attention
    assert device.calls["flash"] == 2 + middle * sum(range(2, PASSES + 1)), probe


@pytest.mark.parametrize("factors", [[0.5, 0.25], [0.9, 0.0]])
@pytest.mark.parametrize("name", ["adm", "but_mod"])
def test_passes_that_tokens_have_left_compute_the_same_as_on_the_cpu(
    device: EmulatedCuda, name: str, factors: list[float]
) -> None:
    """In float32, where rounding chooses the same tokens; the mask must keep each pass to what it may see."""
    models = [tiny_model(name, training_length_factor=factors).train().to(where) for where in ("cpu", "cuda")]
    idx, targets = tokens(2, 16), tokens(2, 16, seed=1)
    for model in models:
        where = next(model.parameters()).device
        model(idx.to(where), targets=targets.to(where))["loss"].backward()
    for (name, mine), (_, theirs) in zip(*(model.named_parameters() for model in models), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            assert torch.allclose(mine.grad, held(theirs.grad), atol=1e-5, rtol=1e-4), name


@pytest.mark.parametrize("precision", ["float32", *HALF])
@pytest.mark.parametrize("window", [3, 20])
@pytest.mark.parametrize("name", ["lncot", "base"])
def test_a_window_is_kept_to(device: EmulatedCuda, precision: str, name: str, window: int) -> None:
    model = tiny_model(name, attention_window_length=window)
    idx = tokens(2, 16)
    with torch.no_grad():
        truth = model(idx, get_logits=True)["logits"]
        with autocaster(precision, DEVICE)():
            found = model.to("cuda")(idx.to("cuda"), get_logits=True)["logits"]
    assert off(found, truth.double()) < 10 * ROUNDING.get(precision, 1e-6)


@pytest.mark.parametrize("name", ["base", "cot"])
def test_windows_of_modern_blocks_are_attended_to_without_masks(device: EmulatedCuda, name: str) -> None:
    settings = {"block": "modern", "window_pattern": "SL", "n_layer": 4, "sequence_length": 256}
    model, idx = tiny_model(name, **settings), tokens(2, 256)
    with torch.no_grad():
        truth = model(idx, get_logits=True)["logits"]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = model.to("cuda")(idx.to("cuda"), get_logits=True)["logits"]
            positions = torch.arange(256, device="cuda").unsqueeze(0)
            plan = model.planner(1).plan(positions, [positions] * 3, 128, whole=True)
    assert off(found, truth.double()) < 10 * ROUNDING["bfloat16"] and plan.tiles and plan.mask is None


@pytest.mark.parametrize("name", VARIANTS)
def test_deterministic_algorithms_refuse_nothing_in_a_training_step(device: EmulatedCuda, name: str) -> None:
    model = tiny_model(name).train().to("cuda")
    torch.use_deterministic_algorithms(True)
    try:
        forward(model, "cuda", "bfloat16")["loss"].backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_sums_of_the_halting_odds_are_those_of_cumsum(device: EmulatedCuda) -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(held(_sums_so_far(x.to("cuda"))), x.cumsum(-1), atol=1e-6)


@pytest.mark.parametrize("unit", ["pass", "block"])
def test_activation_checkpointing_computes_the_same_under_autocast(
    device: EmulatedCuda, dtype: str, unit: str
) -> None:
    found = []
    for how in ("none", unit):
        model = tiny_model("lncot", activation_checkpointing=how).train().to("cuda")
        forward(model, "cuda", dtype)["loss"].backward()
        found.append([held(p.grad) for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


# precision


def test_dtype_auto_means_bfloat16_on_a_gpu(device: EmulatedCuda) -> None:
    assert autocast_dtype("auto", DEVICE) == torch.bfloat16


def test_products_run_in_the_dtype_of_the_autocast(device: EmulatedCuda, dtype: str) -> None:
    with autocaster(dtype, DEVICE)():
        assert nn.Linear(8, 8).to("cuda")(torch.ones(2, 8, device="cuda")).dtype == HALF[dtype]


def test_logits_are_made_in_the_dtype_of_the_autocast(device: EmulatedCuda, dtype: str) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(9, 16, generator=draw).to("cuda") for _ in range(2))
    targets = torch.arange(9, device="cuda")
    rounded = linear_cross_entropy(hidden.to(HALF[dtype]), weight.to(HALF[dtype]), targets)[1]
    with autocaster(dtype, DEVICE)():
        found = linear_cross_entropy(hidden, weight, targets)[1]
    assert torch.equal(held(found), held(rounded))


def test_products_in_float32_may_use_tf32(device: EmulatedCuda) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        set_precision(deterministic=False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


# the step of the loop


class Tokens(PlainSource):
    def samples(self, step: int, first: int, count: int) -> Batch:
        inputs, targets = tokens(count, 16, seed=first), tokens(count, 16, seed=first + 1)
        return Batch({"inputs": inputs, "targets": targets}, targets.numel())


def step_of(where: torch.device, dtype: str, model: str = "lncot", **changes: Any) -> OptimizerStep:
    args = tiny_args(model, dtype=dtype, batch_size=2, acc_steps=2, lr=1e-3, **changes)
    network = tiny_model(model).train()
    objective = NextToken(network).to(where)
    return OptimizerStep(args, World(where), objective, make_optimizer(network, args), Tokens())


def weights_after(steps: OptimizerStep, count: int) -> torch.Tensor:
    for step in range(count):
        steps.take(step)
    return torch.cat([held(p).detach().flatten() for p in steps.model.parameters()])


def test_a_step_unscales_the_gradient_before_it_is_clipped(device: EmulatedCuda) -> None:
    steps, plain = step_of(DEVICE, "float16"), step_of(CPU, "float32")
    steps.take(0)
    plain.take(0)
    assert float(steps.meter.last) == pytest.approx(float(plain.meter.last), rel=0.02)


def test_steps_in_half_precision_train_as_those_in_float32(device: EmulatedCuda, dtype: str) -> None:
    begin = weights_after(step_of(CPU, "float32"), 0)
    truth = weights_after(step_of(CPU, "float32"), 4) - begin
    found = weights_after(step_of(DEVICE, dtype), 4) - begin
    assert float(found @ truth / found.norm() / truth.norm()) > 0.9


def test_the_scaler_scales_in_float16_alone(device: EmulatedCuda) -> None:
    scales = {dtype: step_of(DEVICE, dtype).scaler.is_enabled() for dtype in ("float32", *HALF)}
    assert scales == {"float32": False, "bfloat16": False, "float16": True}


def test_a_step_that_overflows_is_passed_over_and_the_scale_is_halved(device: EmulatedCuda) -> None:
    steps = step_of(DEVICE, "float16")
    steps.scaler.load_state_dict({**steps.scaler.state_dict(), "scale": 2.0**60})
    before = weights_after(steps, 0)
    _, wrong = steps.take(0)
    assert wrong is None
    assert steps.meter.overflows == 1
    assert steps.scaler.get_scale() == 2.0**59
    assert torch.equal(weights_after(steps, 0), before)


def test_the_fused_optimizer_is_taken(device: EmulatedCuda) -> None:
    assert step_of(DEVICE, "bfloat16").optimizer.defaults["fused"] is True


def test_batches_come_from_pinned_memory_and_are_not_waited_for(device: EmulatedCuda) -> None:
    batch = Tokens().samples(0, 0, 2).to(DEVICE)
    assert isinstance(batch["inputs"], DeviceTensor)
    assert device.uploads == []


class PauseOnce(Hook):
    def stepped(self, step: int, loss: float) -> Stop | None:
        return Stop("pause", "half of the steps are taken") if step == 2 else None


def train(folder: Path, steps: int, **changes: Any) -> None:
    network = tiny_model("lncot").train()
    settings = {"batch_size": 2, "acc_steps": 2, "device": "cuda", "dtype": "float16", "lr": 1e-3, **changes}
    fit(NextToken(network), Tokens(), steps=steps, folder=folder, **settings)


def test_a_training_that_is_resumed_ends_with_the_same_bits(device: EmulatedCuda, tmp_path: Path) -> None:
    train(tmp_path / "calm", 4)
    train(tmp_path / "resumed", 4, hooks=[PauseOnce()])
    train(tmp_path / "resumed", 4)
    found = [leaves(checkpoint.load_checkpoint(tmp_path / name / "ckpt.pt")) for name in ("calm", "resumed")]
    assert [name for name in differing(*found) if not name.startswith("/args")] == []


def test_a_checkpoint_holds_tensors_of_the_cpu(device: EmulatedCuda, tmp_path: Path) -> None:
    train(tmp_path, 2)
    state = leaves(checkpoint.load_checkpoint(tmp_path / "ckpt.pt"))
    kinds = {value.device.type for value in state.values() if isinstance(value, torch.Tensor)}
    assert kinds == {"cpu"}


def test_the_generator_of_the_device_is_saved_and_restored(device: EmulatedCuda) -> None:
    torch.manual_seed(1)
    states, before = checkpoint.random_states(DEVICE), device.generator
    torch.manual_seed(2)
    assert not torch.equal(device.generator, before)
    checkpoint.restore_random_states(states, DEVICE)
    assert torch.equal(device.generator, before)


# evaluation and generation


def text() -> TokenWindows:
    return TokenWindows(np.random.RandomState(0).randint(0, 64, 400).astype(np.uint16), 16)


@pytest.mark.parametrize("name", VARIANTS)
def test_evaluation_gives_the_losses_of_the_cpu(device: EmulatedCuda, name: str) -> None:
    found = [
        evaluate(tiny_model(name).to(where), text(), 4, World(where), autocaster("float32", where))
        for where in (CPU, DEVICE)
    ]
    assert found[1]["val_loss"] == pytest.approx(found[0]["val_loss"], abs=1e-5)


def test_evaluation_leaves_the_generator_of_the_device_as_it_was(device: EmulatedCuda) -> None:
    torch.manual_seed(1)
    before = device.generator
    evaluate(tiny_model("base").to(DEVICE), text(), 4, World(DEVICE), autocaster("float32", DEVICE))
    assert torch.equal(device.generator, before)


def test_log_likelihoods_are_those_of_the_cpu(device: EmulatedCuda) -> None:
    requests = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9])]
    found = [Scorer(tiny_model("lncot"), where, 2).loglikelihoods(requests) for where in (CPU, DEVICE)]
    for (mine, _), (theirs, _) in zip(*found, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_shares_of_tokens_by_router_scores_are_those_of_the_cpu(device: EmulatedCuda) -> None:
    found = [
        factors_at(
            tiny_model("adm").to(where),
            text(),
            np.arange(8),
            4,
            [0.0, 0.4, 0.5],
            autocaster("float32", where),
            World(where),
        )
        for where in (CPU, DEVICE)
    ]
    assert found[0] == found[1]


CALLS = ([1, 2, 3, 4, 5], [6], [7, 8, 9], [10])  # tokens of one row, as they are told to a session


def said(model: Transformer, where: torch.device, dtype: str, rows: int = 1) -> list[torch.Tensor]:
    session = Session(model, rows, where, autocaster(dtype, where))
    return [session.extend([call[row:] or call for row in range(rows)]) for call in CALLS]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "pondernet"])
def test_generation_gives_the_logits_of_the_cpu(device: EmulatedCuda, name: str, rows: int) -> None:
    settings = {"routing": "threshold", "router_threshold": [0.5, 0.45]}
    truth, found = (said(tiny_model(name, **settings), where, "float32", rows) for where in (CPU, DEVICE))
    assert all(torch.allclose(mine, theirs, atol=1e-4) for mine, theirs in zip(found, truth, strict=True))


@pytest.mark.parametrize("name", ["base", "lncot", "cot"])
def test_generation_in_half_precision_is_near_to_that_of_the_cpu(
    device: EmulatedCuda, dtype: str, name: str
) -> None:
    truth, found = said(tiny_model(name), CPU, "float32"), said(tiny_model(name), DEVICE, dtype)
    assert max(off(mine, theirs.double()) for mine, theirs in zip(found, truth, strict=True)) < (
        10 * ROUNDING[dtype]
    )


def test_a_prompt_goes_through_flash_attention_and_one_token_does_not(
    device: EmulatedCuda, dtype: str
) -> None:
    session = Session(tiny_model("lncot"), 1, DEVICE, autocaster(dtype, DEVICE))
    counts = []
    for call in CALLS:
        session.extend([call])
        counts.append(device.calls["flash"])
        device.calls.clear()
    assert [bool(count) for count in counts] == [len(call) > 1 for call in CALLS]


# the machine


def test_the_device_is_found(device: EmulatedCuda) -> None:
    assert (pick_device("auto"), pick_device("cuda"), pick_device("cuda:0")) == (DEVICE,) * 3


def test_a_device_that_is_not_there_is_refused(device: EmulatedCuda) -> None:
    with pytest.raises(UserError, match="only 1 CUDA devices"):
        pick_device("cuda:1")


def test_a_lone_process_joins_on_the_device(device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join(None, "auto").device == DEVICE


def test_a_healthy_node_is_fit(device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(health, "GPU_MIB", 2)
    monkeypatch.setattr(health, "SIZE", 64)
    assert health.check(1, "auto", None) == "an emulated H100"


def test_a_node_with_too_few_devices_is_not_fit(device: EmulatedCuda) -> None:
    with pytest.raises(RuntimeError, match="2 GPUs were asked for, CUDA sees 1"):
        health.check(2, "auto", None)


def test_memory_and_peak_rate_are_those_of_the_device(device: EmulatedCuda) -> None:
    assert (peak_memory_mib(DEVICE), peak_flops(DEVICE)) == (123, 989e12)
