"""Linear layers in FP8: how near they are to float32, what stays as it was, and trainings."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bench.gpu.fp8
import config
from bench.gpu.fp8 import beside
from config.identity import differences
from errors import UserError
from models import fp8, loss
from models.loss import linear_cross_entropy
from models.network import roles_of
from models.variants import VARIANTS
from optim.selftest import differing
from optim.setup import need_fp8
from tests import with_fp8
from tests.helpers import same, tiny_model, tokens
from tests.programs import final_state, flags, python, run, start, wait_for_step

each_recipe = pytest.mark.parametrize("recipe", [fp8.TENSORWISE, fp8.ROWWISE])
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
WIDE, NARROW = 48, 32
# largest error of a product, of the norm of the exact one: mantissas of 3 bits, or of 2 in gradients
NEAR = {fp8.TENSORWISE: (0.06, 0.1), fp8.ROWWISE: (0.06, 0.06)}
LACKING = fp8.lacking
TORCHS_OWN = torch._scaled_mm


@pytest.fixture(autouse=True)
def gpu():
    """As tests/with_fp8.py has it."""
    with ExitStack() as stack:
        for patch in with_fp8.replaced():
            stack.enter_context(patch)
        yield


def layer(recipe, bias=False):
    """From 48 features to 32."""
    torch.manual_seed(1)
    made = nn.Linear(WIDE, NARROW, bias=bias)
    made.__class__, made.recipe = fp8.Float8Linear, recipe
    return made


def inputs(count, seed=0):
    torch.manual_seed(seed)
    return torch.randn(count, WIDE, requires_grad=True), torch.randn(count, NARROW)


def error(found, exact):
    return ((found.float() - exact).norm() / exact.norm()).item()


def results(x, grad, weight, y):
    return y, *torch.autograd.grad(y, (x, weight), grad.to(y.dtype))


# one layer


@pytest.mark.parametrize("count", [1, 15, 16, 50])
@each_recipe
def test_outputs_and_gradients_are_near_those_of_float32(recipe, count):
    linear, (x, grad) = layer(recipe), inputs(count)
    exact = results(x, grad, linear.weight, F.linear(x, linear.weight))
    found = results(x, grad, linear.weight, linear(x))
    errors = [error(one, other) for one, other in zip(found, exact, strict=True)]
    of_values, of_gradients = NEAR[recipe]
    assert errors[0] < of_values and errors[1] < of_gradients and errors[2] < of_gradients


@pytest.mark.slow
@each_recipe
def test_torchs_own_product_gives_the_same(monkeypatch, recipe):
    linear, (x, grad) = layer(recipe), inputs(15)
    found = results(x, grad, linear.weight, linear(x))
    monkeypatch.setattr(torch, "_scaled_mm", TORCHS_OWN)
    for one, exact in zip(found, results(x, grad, linear.weight, linear(x)), strict=True):
        assert error(one, exact) < 0.005


@each_recipe
def test_outputs_are_bfloat16_and_gradients_as_what_they_are_of(recipe):
    linear, (x, grad) = layer(recipe), inputs(16)
    assert [result.dtype for result in results(x, grad, linear.weight, linear(x))] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]


@each_recipe
def test_a_bias_is_added_and_trained(recipe):
    linear, (x, grad) = layer(recipe, bias=True), inputs(16)
    y = linear(x)
    of_bias = torch.autograd.grad(y, linear.bias, grad.to(y.dtype))[0]
    assert error(y, F.linear(x, linear.weight, linear.bias)) < 0.05 and error(of_bias, grad.sum(0)) < 0.01


@each_recipe
def test_zeros_give_zeros(recipe):
    linear = layer(recipe)
    x = torch.zeros(16, WIDE, requires_grad=True)
    for result in results(x, torch.zeros(16, NARROW), linear.weight, linear(x)):
        assert not result.any()


@pytest.mark.parametrize("size", [1e37, 1e-37], ids=["huge", "tiny"])
@each_recipe
def test_values_of_any_size_are_near_too(recipe, size):
    linear, (x, _) = layer(recipe), inputs(16)
    assert error(linear(size * x) / size, F.linear(x, linear.weight)) < 0.05


@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
@each_recipe
def test_an_infinity_is_not_lost(recipe, wrong):
    linear, (x, _) = layer(recipe), inputs(16)
    assert not linear(torch.cat((x, torch.full((1, WIDE), wrong))))[-1].isfinite().any()


def test_a_small_token_beside_a_large_one_is_seen_by_rows_alone():
    x, _ = inputs(16)
    x = torch.cat((x, 1e7 * x))
    outputs = {recipe: layer(recipe)(x)[:16] for recipe in (fp8.TENSORWISE, fp8.ROWWISE)}
    exact = F.linear(x, layer(fp8.ROWWISE).weight)[:16]
    assert error(outputs[fp8.ROWWISE], exact) < 0.05 and not outputs[fp8.TENSORWISE].any()


@each_recipe
def test_no_tokens_give_no_outputs(recipe):
    assert layer(recipe)(torch.empty(2, 0, WIDE)).shape == (2, 0, NARROW)


@each_recipe
def test_in_evaluation_it_is_the_layer_that_it_was(recipe):
    linear, (x, _) = layer(recipe).eval(), inputs(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear(x), F.linear(x, linear.weight))


# the head


@pytest.mark.parametrize("slices", [1 << 20, 20 * 37], ids=["one slice", "slices of 16 tokens"])
@pytest.mark.parametrize("softcap", [None, 15.0])
@each_recipe
def test_the_loss_is_near_that_of_float32(monkeypatch, recipe, softcap, slices):
    monkeypatch.setattr(loss, "SLICE_ELEMENTS", slices)
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, WIDE, requires_grad=True), torch.randn(64, WIDE, requires_grad=True)
    targets = torch.randint(0, 37, (50,))
    targets[3] = -1
    found = []
    for wanted in (None, recipe):
        total, _, _ = linear_cross_entropy(
            hidden, weight, targets, softcap=softcap, vocabulary=37, recipe=wanted
        )
        found.append((total, *torch.autograd.grad(total, (hidden, weight))))
    of_total, of_hidden, of_weight = (error(one, exact) for exact, one in zip(*found, strict=True))
    assert of_total < 0.02 and max(of_hidden, of_weight) < 0.15 and not found[1][2][37:].any()


# networks


def networks(name, recipe, *more):
    """A tiny one, as it is and converted."""
    plain = tiny_model(name, *more).train()
    converted = copy.deepcopy(plain)
    fp8.convert(converted, recipe)
    return plain, converted


def loss_of(network):
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return network(tokens(2, 16), targets=tokens(2, 16, seed=1))["loss"]


def gradients_of(network):
    loss_of(network).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@each_recipe
@pytest.mark.parametrize("name", VARIANTS)
def test_every_model_trains(name, recipe):
    plain, converted = networks(name, recipe)
    assert loss_of(converted).item() == pytest.approx(loss_of(plain).item(), rel=0.02)
    assert all(bool(grad.isfinite().all()) for grad in gradients_of(converted).values() if grad is not None)


@each_recipe
def test_weights_names_and_roles_stay(recipe):
    plain, converted = networks("lncot", recipe)
    assert same(plain.state_dict(), converted.state_dict()) and roles_of(plain) == roles_of(converted)


def test_the_head_is_in_fp8_where_it_qualifies(gpu):
    assert networks("base", fp8.ROWWISE)[1].head_recipe == fp8.ROWWISE
    assert fp8.head_recipe(networks("base", fp8.ROWWISE, "--vocab_size", "65")[1]) is None


@pytest.mark.parametrize("name", VARIANTS)
def test_in_evaluation_a_network_is_the_one_that_it_was(name):
    plain, converted = networks(name, fp8.TENSORWISE)
    assert torch.equal(loss_of(converted.eval()), loss_of(plain.eval()))


@each_recipe
@pytest.mark.parametrize("unit", ["pass", "block"])
def test_recomputed_activations_give_the_same_gradients(unit, recipe):
    kept, recomputed = (
        networks("lncot", recipe, "--activation_checkpointing", how)[1] for how in ("none", unit)
    )
    assert same(gradients_of(kept), gradients_of(recomputed))


# what is refused, and what is another training


def test_a_network_of_small_layers_is_refused(monkeypatch):
    monkeypatch.setattr(fp8, "SMALLEST_SIDE", 128)
    with pytest.raises(UserError, match=r"^--fp8: none of this network's linear layers .* larger --n_embd$"):
        fp8.convert(tiny_model("base"), fp8.TENSORWISE)


def test_a_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(fp8, "lacking", LACKING)
    with pytest.raises(UserError, match=r"capability 8.9 or more .*, and this run is on a CPU; leave --fp8"):
        need_fp8("bfloat16", CPU)


@pytest.mark.parametrize(
    ("capability", "hip", "words"),
    [((8, 0), None, "NVIDIA A100 has 8.0"), ((9, 4), "6.4", "this GPU is AMD's")],
)
def test_an_unsuitable_gpu_is_refused(monkeypatch, capability, hip, words):
    monkeypatch.setattr(fp8, "lacking", LACKING)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.raises(UserError, match=f"and {words}; leave --fp8 out$"):
        need_fp8("auto", GPU)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_suitable_gpus_are_taken(monkeypatch, capability):
    monkeypatch.setattr(fp8, "lacking", LACKING)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    need_fp8("auto", GPU)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(UserError, match=f"^--fp8 computes the rest in bfloat16: .*, not {dtype}$"):
        need_fp8(dtype, GPU)


def test_main_refuses_it_here_in_one_line(tmp_path):
    outcome = run([*python(), "main.py", *flags(tmp_path), "--fp8"])
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1)
    assert "--fp8 needs an NVIDIA GPU" in outcome.stderr


def test_a_recipe_without_fp8_is_noted():
    assert config.unused_settings(config.parse_args(["--fp8_recipe", "rowwise"])) == [
        "--fp8_recipe has no effect: --fp8 is not given"
    ]


@pytest.mark.parametrize(("recipe", "lines"), [(fp8.TENSORWISE, 2), (fp8.ROWWISE, 0)])
def test_the_cut_of_a_batch_matters_where_a_micro_batch_shares_a_scale(recipe, lines):
    one, other = (
        vars(config.parse_args(["--fp8", "--fp8_recipe", recipe, "--batch_size", size, "--acc_steps", steps]))
        for size, steps in (("8", "2"), ("4", "4"))
    )
    assert len(differences(one, other)) == lines


# trainings

SHORT = {"iterations": 12, "eval_freq": 4, "eval_batches": 2, "log_freq": 1, "save_checkpoint_freq": 2}


def words(results, processes=1):
    settings = flags(results, **SHORT, dtype="bfloat16", opt="muon", scalar_lr=1e-3)
    return [*python(processes), "-m", "tests.with_fp8", *settings, "--fp8"]


@pytest.mark.slow
def test_a_killed_training_ends_with_the_bits_of_one_that_was_not_on_any_number_of_processes(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    told = run(words(calm))
    assert told.returncode == 0, told.stderr
    assert "FP8, tensorwise: 13 linear layers, 2 kept in bfloat16" in told.stdout + told.stderr
    process = start(words(killed))
    wait_for_step(killed, 6, process)
    process.kill()
    process.wait()
    outcome = run(words(killed, processes=2))
    assert outcome.returncode == 0 and "resumed from" in outcome.stdout + outcome.stderr
    ends = [
        {name: value for name, value in final_state(results).items() if "model" in name}
        for results in (calm, killed)
    ]
    assert ends[0] and differing(*ends) == []


def test_the_bench_sets_it_beside_bfloat16(monkeypatch, capsys):
    monkeypatch.setattr(bench.gpu.fp8, "STEPS", 4)
    beside(Namespace(device="cpu", dtype="bfloat16", tiny=True))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["verdict"] for row in told] == [None, "PASS", None, "PASS"]


def test_the_bench_skips_it_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(fp8, "lacking", LACKING)
    beside(Namespace(device="cpu", dtype="bfloat16", tiny=True))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["verdict"] for row in told] == ["SKIPPED"] * 2 and "NVIDIA GPU" in told[0]["note"]
