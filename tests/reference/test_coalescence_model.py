"""The network of coalescence times against the public code's numbers, with its defects repaired."""

import pytest
import torch
from torch import nn

from data.batch import Batch
from models.coalescence.adapter import Adapter
from models.coalescence.settings import AdapterSettings
from optim.coalescence.objective import NextTime
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
