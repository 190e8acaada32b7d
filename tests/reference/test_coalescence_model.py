"""The network of coalescence times against the public code's numbers, with its defects repaired."""

import pytest
import torch
from torch import nn

import config
from data.batch import Batch
from models import make_model_from_args
from models.coalescence.adapter import Adapter
from models.coalescence.settings import PUBLISHED, AdapterSettings
from models.network import ADAPTER, roles_of
from optim.coalescence.objective import NextTime
from optim.optimizers import make_optimizer
from optim.schedules import make_scheduler, shape_of
from tests.reference.cases import each, read
from tests.reference.coalescence_model import (
    FILE,
    case_inputs,
    inputs,
    network_of,
    tokens,
    weights,
    wrapped_network,
)

LOGITS, LOSS = 2e-5, 1e-5
SECTION = read(FILE) or {}
MASKED_LOSS = "loss_bin_0_overwritten_source_apart_with_mask_token_0.5"


def norms(network, prefix=""):
    """Norms of the gradients by the public code's names; None where there is none."""
    found = {}
    for name, parameter in network.named_parameters():
        grad = parameter.grad
        found[name] = None if grad is None else float(grad.norm())
    return found


def check_norms(expected, found):
    for name, norm in found.items():
        right = expected[name]
        if right is None:
            assert norm is None
        else:
            assert norm == pytest.approx(right, rel=1e-4, abs=1e-7)


def check_logits(expected, logits):
    for place, values in expected.items():
        row, position = map(int, place.split(","))
        assert logits[row, position, : len(values)].tolist() == pytest.approx(values, abs=LOGITS)


def loss_of(network, x, y):
    """As training has it, with gradients."""
    loss = NextTime(network)(Batch({"x": x, "tokens": y}, count=y[:, 1:].numel())).mean
    loss.backward()
    return float(loss.detach())


def check_model(case, samples, vocabulary):
    network = network_of(case)
    x = case_inputs(case, samples)
    before, y = x.clone(), tokens(case["y_q"], case["batch"], case["n_windows"], vocabulary)
    right = case["right"]
    assert loss_of(network, x, y) == pytest.approx(right["loss"], abs=LOSS)
    with torch.no_grad():
        logits = network(x, y)
    check_logits(right["logits_first_8"], logits)
    assert torch.equal(x, before)
    return network, logits


@each(FILE, "model", "cases")
def test_loss_logits_and_gradients(case):
    samples = case["config"]["num_samples"]
    network, logits = check_model(case, samples, case["config"]["output_dim"])
    assert case["n_params"] == sum(parameter.numel() for parameter in network.parameters())
    assert sorted(name for name, *_ in case["params"]) == sorted(dict(network.named_parameters()))
    assert float(logits.sum()) == pytest.approx(case["right"]["logit_sum"], rel=1e-4, abs=0.05)
    check_norms(case["right"]["grad_norms"], norms(network))


@each(FILE, "model", "cases")
def test_bin_0_is_read_where_it_is_not_masked(case):
    x = case_inputs(case, case["config"]["num_samples"])
    x[..., 0] += 1
    y = tokens(case["y_q"], case["batch"], case["n_windows"], case["config"]["output_dim"])
    right = case["loss_if_bin_0_is_raised_by_1_right_mask"]
    assert loss_of(network_of(case), x, y) == pytest.approx(right, abs=LOSS)


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.skipif("full_size" not in SECTION.get("model", {}), reason=f"no full size in {FILE}")
def test_full_size():
    case = SECTION["model"]["full_size"]
    preset = SECTION["model"]["presets"][case["preset"]]
    network, _ = check_model({**case, "config": preset}, preset["num_samples"], preset["output_dim"])
    total = nn.utils.get_total_norm([parameter.grad for parameter in network.parameters()])
    assert float(total) == pytest.approx(case["right"]["total_grad_norm"], rel=1e-4)


@each(FILE, "adapter", "forward")
def test_adapter(case):
    adapter = Adapter(AdapterSettings(case["n_in"], case["bottleneck"]), case["n_out"])
    adapter.load_state_dict(weights(case["params"]))
    x = inputs(case["x_q"], *case["x_shape"])
    assert sum(parameter.numel() for parameter in adapter.parameters()) == case["n_params"]
    out = adapter(x)
    assert list(out.shape) == case["out_shape"]
    for row, gate in zip(adapter.gate(x), case["gate"], strict=True):
        assert row.tolist() == pytest.approx(gate, abs=LOGITS)
    assert out[0, 0, 0, 0].tolist() == pytest.approx(case["out_first_window"], abs=LOGITS)
    assert out[-1, -1, -1, -1].tolist() == pytest.approx(case["out_last_window"], abs=LOGITS)


@each(FILE, "adapter", "wrapped")
def test_network_below_an_adapter(case):
    network = wrapped_network(case)
    x, right = case_inputs(case, case["n_in"]), case[case["right_key"]]
    before, y = x.clone(), tokens(case["y_q"], case["batch"], case["n_windows"])
    network.train()
    assert loss_of(network, x, y) == pytest.approx(right["loss"], abs=LOSS)
    expected = {name.removeprefix("backbone."): norm for name, norm in right["grad_norms"].items()}
    check_norms(expected, norms(network))
    with torch.no_grad():
        check_logits(right["logits_first_8"], network(x, y))
    assert torch.equal(x, before)


@each(FILE, "adapter", "wrapped", where=lambda case: case["config"].get("mask_singletons", True))
def test_mask_token_is_what_bin_0_holds(case):
    network = wrapped_network(case, mask_token=0.5)
    y = tokens(case["y_q"], case["batch"], case["n_windows"])
    assert loss_of(network, case_inputs(case, case["n_in"]), y) == pytest.approx(case[MASKED_LOSS], abs=LOSS)


@each(FILE, "adapter", "wrapped")
def test_what_is_trained_with_an_adapter(case):
    network = wrapped_network(case)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    expected = {name.removeprefix("backbone.") for name in case["trainable"]}
    assert trained == expected & set(dict(network.named_parameters()))


def coalescence_args(*flags):
    """As the recipe has them for data that are not there."""
    return config.parse_args(["coalescence", *map(str, flags), "--dataset-path", "nowhere/data"])


def groups_of(network, args):
    """Numbers of tensors and of parameters, rate over that of the run, and decay, of each group."""
    found = []
    for group in make_optimizer(network, args).param_groups:
        params = group["params"]
        counts = len(params), sum(parameter.numel() for parameter in params)
        found.append([*counts, group.get("rate", 1.0), group["weight_decay"]])
    return found


@pytest.mark.reference
@pytest.mark.skipif("presets" not in SECTION.get("model", {}), reason=f"no presets in {FILE}")
def test_presets_are_those_of_the_public_code():
    assert set(PUBLISHED) == set(SECTION["model"]["presets"])


@pytest.mark.reference
@pytest.mark.parametrize("name", SECTION.get("model", {}).get("presets", {}))
def test_preset(name):
    case = SECTION["model"]["presets"][name]
    args = coalescence_args("--model", name)
    with torch.device("meta"):
        network = make_model_from_args(args)
    settings = network.settings
    assert {
        "n_layer": settings.n_layer,
        "n_embd": settings.n_embd,
        "n_head": settings.n_head,
        "num_samples": settings.n_samples,
        "output_dim": settings.vocab_size,
        "window_size": PUBLISHED[name].window_size,
        "mask_singletons": settings.mask_singletons,
        "dropout": settings.dropout,
        "n_windows": settings.n_windows,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tensors": len(list(network.parameters())),
        "decayed": groups_of(network, args)[0][:2],
        "not_decayed": groups_of(network, args)[1][:2],
    } == case


@each(FILE, "adapter", "real_size")
def test_groups_of_a_preset_with_an_adapter(case):
    args = coalescence_args("--model", case["preset"], "--adapter", "--adapter_last_n", case["last_n"])
    with torch.device("meta"):
        network = make_model_from_args(args)
    roles = roles_of(network)
    backbone = {name: p for name, p in network.named_parameters() if roles[name] != ADAPTER}
    trained = [parameter for parameter in backbone.values() if parameter.requires_grad]
    assert sum(p.numel() for p in backbone.values()) == case["backbone_params"]
    assert sum(p.numel() for p in trained) == case["backbone_trainable"]
    assert len(trained) == case["backbone_tensors_trainable"]
    found = {}
    for tensors, parameters, rate, decay in groups_of(network, args):
        found[rate, decay] = [tensors, parameters]
    mask_token = int(network.mask_token is not None)  # which is trained here
    for tensors, parameters, rate, decay in case["groups"]:
        of_adapter = mask_token if rate == 1.0 else 0
        assert found.pop((rate, decay)) == [tensors + of_adapter, parameters + of_adapter]
    assert not found


@each(FILE, "adapter", "wrapped")
def test_groups_below_an_adapter(case):
    network = wrapped_network(case)
    groups = make_optimizer(network, coalescence_args("--adapter", "--lr", 1e-3)).param_groups
    for group, expected in zip(groups, case["groups"], strict=True):
        names = {name.removeprefix("backbone.") for name in expected["params"]}
        assert set(group["param_names"]) - {"mask_token"} == names
        assert group["weight_decay"] == expected["weight_decay"]
        assert group["lr"] / 1e-3 * group.get("rate", 1.0) == expected["lr_over_max_lr"]


def schedule_of(case):
    """That of the flags for a run as long as the cases' longest."""
    rates = ["--lr", case["max_lr"], "--warmup_steps", case["warmup_iters"]]
    args = coalescence_args(*rates, "--decay_steps", case["lr_decay_iters"])
    args.min_lr = case["min_lr"]  # which may be more than --lr there
    shape = shape_of(args)
    return lambda step: shape.rate(shape.planned(1 << 30), step)


@each(FILE, "schedule_and_loader", "schedule")
def test_rates(case):
    rate = schedule_of(case)
    assert [rate(step) for step in case["steps"]] == pytest.approx(case["lr"], rel=1e-12, abs=0)


@pytest.mark.reference
@pytest.mark.skipif("trajectory" not in SECTION.get("model", {}), reason=f"no trajectory in {FILE}")
def test_trajectory():
    """With the optimiser and the schedule of the recipe's flags."""
    case = SECTION["model"]["trajectory"]
    model = next(each for each in SECTION["model"]["cases"] if each["name"] == case["model_case"])
    samples, vocabulary = model["config"]["num_samples"], model["config"]["output_dim"]
    beta1, beta2 = case["betas"]
    rates = ["--lr", case["max_lr"], "--min_lr", case["min_lr"], "--warmup_steps", case["warmup_iters"]]
    others = ["--weight_decay", case["weight_decay"], "--beta1", beta1, "--beta2", beta2]
    args = coalescence_args(*rates, *others, "--decay_steps", case["lr_decay_iters"])
    network = network_of(model)
    objective, optimizer = NextTime(network), make_optimizer(network, args)
    schedule, losses, lrs = make_scheduler(optimizer, args), [], []
    for step in range(case["steps"]):
        x = case_inputs({**model, "x_q": step}, samples)
        y = tokens(step + 1, model["batch"], model["n_windows"], vocabulary)
        loss = objective(Batch({"x": x, "tokens": y}, y[:, 1:].numel())).mean
        loss.backward()
        losses.append(float(loss.detach()))
        lrs.append(schedule.get_last_lr()[0])
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert losses == pytest.approx(case["right"]["losses"], abs=1e-4)
    assert lrs == pytest.approx(case["lrs"], rel=1e-9)
    norm = nn.utils.get_total_norm(list(network.parameters()))
    assert float(norm) == pytest.approx(case["right"]["final_param_norm"], rel=1e-5)
