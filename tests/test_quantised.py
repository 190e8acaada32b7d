"""Weights in bfloat16 and int8: close to the network's own logits, whatever the number of rows; refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models import quantised
from models.adapters import LoraLinear
from models.layers import Block
from models.quantised import FEW_ROWS, BFloat16Linear, Int8Linear, quantise
from models.variants import VARIANTS
from optim.generation import Session
from tests.helpers import tiny_model, tokens

CPU = torch.device("cpu")
STEADY = [name for name in VARIANTS if name != "pondernet"]  # which draws its exits
LAYERS = (BFloat16Linear, Int8Linear)


def converted(model, kind):
    other = copy.deepcopy(model)
    quantise(other, kind)
    return other


def logits(model, row):
    with torch.no_grad():
        return model(row, get_logits=True)["logits"]


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", STEADY)
def test_logits_of_every_model_stay_close(name, kind):
    model, row = tiny_model(name), tokens(1, 12)
    exact = logits(model, row)
    assert (logits(converted(model, kind), row) - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_logits_of_modern_blocks_stay_close(kind):
    model, row = tiny_model("base", block="modern"), tokens(1, 12)
    exact = logits(model, row)
    assert (logits(converted(model, kind), row) - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_token_at_a_time_gives_the_logits_of_the_whole_row(kind):
    model, row = converted(tiny_model("lncot"), kind), tokens(12)
    session = Session(model, 1, CPU)
    for token in row.tolist():
        found = session.extend([[token]])
    assert torch.allclose(found[0], logits(model, row[None])[0, -1], atol=0.05)


@pytest.mark.parametrize("layer_of", LAYERS)
@pytest.mark.parametrize("columns", [64, 12])  # one that the kernel of int8 takes, one that it does not
@pytest.mark.parametrize(("rows", "by_mv"), [(1, True), (1, False), (2, False), (FEW_ROWS + 1, False)])
def test_a_layer_gives_what_its_own_weights_give(layer_of, columns, rows, by_mv, monkeypatch):
    monkeypatch.setattr(quantised, "SINGLE_ROW_BY_MV", by_mv)
    torch.manual_seed(0)
    layer = layer_of(torch.randn(40, columns), torch.randn(40))
    weight = layer.weight.float()
    if layer_of is Int8Linear:
        weight *= layer.scale.float().unsqueeze(1)
    x = torch.randn(1, rows, columns).bfloat16().float()
    exact = nn.functional.linear(x, weight, layer.bias)
    assert torch.allclose(layer(x), exact, rtol=0.02, atol=0.05 * float(exact.abs().max()))


def test_an_output_without_weights_stays_zero():
    assert not Int8Linear(torch.zeros(4, 64), None)(torch.ones(1, 64)).any()


@pytest.mark.parametrize("layer_of", LAYERS)
def test_an_adapter_is_merged(layer_of):
    model = tiny_model("base")
    layer = next(module for module in model.modules() if isinstance(module, Block)).mlp.c_fc
    layer.__class__, layer.scale = LoraLinear, 0.5
    layer.lora_a, layer.lora_b = [nn.Parameter(torch.randn(shape)) for shape in ((2, 32), (128, 2))]
    x = torch.randn(1, 32)
    kind = {BFloat16Linear: "bfloat16", Int8Linear: "int8"}[layer_of]
    other = next(module for module in converted(model, kind).modules() if isinstance(module, Block)).mlp.c_fc
    assert isinstance(other, layer_of) and torch.allclose(other(x), layer(x), rtol=0.05, atol=0.2)


def test_as_they_are_changes_nothing():
    model = tiny_model("lncot")
    quantise(model.train().to("meta"), "float32")
    assert not any(isinstance(module, LAYERS) for module in model.modules())


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda model: model.to("meta"), "int8", "weights in int8 are for CPUs, and this model is on meta"),
        (lambda model: model.train(), "int8", r"for inference alone: call eval\(\) first"),
        (lambda model: model.bfloat16(), "int8", "made of float32, and these are torch.bfloat16"),
        (lambda model: converted(model, "bfloat16"), "int8", "are rounded already"),
        (lambda model: converted(model, "int8"), "float32", "are rounded already"),
        (lambda model: model, "int4", "float32, bfloat16, int8, not in 'int4'"),
    ],
)
def test_what_cannot_be_rounded_is_refused(change, kind, said):
    with pytest.raises(ValueError, match=said):
        quantise(change(tiny_model("base")), kind)
