"""Fast attention, activation checkpointing and compiled blocks against the plain way: the same numbers."""

from __future__ import annotations

import pytest
import torch

from models.variants import ALIASES, VARIANTS
from tests.helpers import fill, tiny_model, tokens
from tests.programs import needs_compiler

LONG = 300  # more than two tiles of queries
ROUTED = (ALIASES["adm"], ALIASES["but_mod"])


def outcome(name, length, training, dtype=torch.float32, **settings):
    """Loss, logits and gradients of one batch, from weights that are the same for all settings."""
    model = fill(tiny_model(name, sequence_length=length, **settings), 1).to(dtype).train(training)
    idx, targets = tokens(2, length), tokens(2, length, seed=1)
    torch.manual_seed(0)
    out = model(idx, targets=targets, get_logits=True)
    out["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out["loss"].detach(), out["logits"].detach(), gradients


def assert_same(found, expected, logits=1e-5, gradients=1e-4):
    assert torch.allclose(found[0], expected[0], atol=logits, rtol=logits)
    assert torch.allclose(found[1], expected[1], atol=logits, rtol=logits)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in found[2].items():
        scale = expected[2][name].abs().max().clamp_min(1e-3)
        assert (gradient - expected[2][name]).abs().max() / scale < gradients, name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("length", "repeats"), [(1, 3), (13, 1), (13, 4), (LONG, 3)])
@pytest.mark.parametrize("name", VARIANTS)
def test_fast_attention_is_the_reference(name, length, repeats, training):
    ways = [outcome(name, length, training, n_repeat=repeats, attention=way) for way in ("fast", "reference")]
    assert_same(*ways)


# in one of 0, equal tokens have equal scores: ties that rounding would break
@pytest.mark.parametrize("window", [2, 5, 200])
@pytest.mark.parametrize("name", ["cot", "lncot", "adm", "but"])
def test_fast_attention_is_the_reference_in_a_window(name, window):
    ways = [
        outcome(name, LONG, True, n_repeat=3, attention_window_length=window, attention=way)
        for way in ("fast", "reference")
    ]
    assert_same(*ways)


@pytest.mark.parametrize("factors", [[1.0, 1.0], [0.9, 0.3], [0.5, 0.5], [0.4, 0.0], [0.0, 0.0]])
@pytest.mark.parametrize("name", ROUTED)
def test_fast_attention_is_the_reference_at_every_budget(name, factors):
    ways = [
        outcome(name, LONG, True, n_repeat=3, training_length_factor=factors, attention=way)
        for way in ("fast", "reference")
    ]
    assert_same(*ways)


@pytest.mark.parametrize("thresholds", [[0.5, 0.5], [0.5, 0.45], [0.55, 0.0]])
@pytest.mark.parametrize("name", ROUTED)
def test_fast_attention_is_the_reference_at_every_threshold(name, thresholds):
    ways = [
        outcome(
            name, LONG, False, n_repeat=3, routing="threshold", router_threshold=thresholds, attention=way
        )
        for way in ("fast", "reference")
    ]
    assert_same(*ways)


@pytest.mark.parametrize("name", ["lncot", "adm"])
def test_fast_attention_is_exact_in_double_precision(name):
    ways = [
        outcome(name, LONG, True, torch.float64, n_repeat=3, positional_encoder="none", attention=way)
        for way in ("fast", "reference")
    ]
    assert_same(*ways, logits=1e-9, gradients=1e-8)


def test_fast_attention_keeps_no_joined_keys():
    """What is saved for the gradients grows with the passes, not with their square."""

    def saved_bytes(repeats):
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model = tiny_model("cot", n_repeat=repeats).train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(tokens(2, 16), targets=tokens(2, 16, seed=1))
            total = sum(seen.values())
        assert out["loss"].isfinite()
        return total

    first, second, third = (saved_bytes(repeats) for repeats in (2, 4, 6))
    assert third - second == pytest.approx(second - first, rel=0.02)


@pytest.mark.parametrize("unit", ["pass", "block"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", VARIANTS)
def test_activation_checkpointing_changes_no_bit(name, dropout, unit):
    ways = [outcome(name, 16, True, dropout=dropout, activation_checkpointing=how) for how in (unit, "none")]
    assert torch.equal(ways[0][0], ways[1][0])
    assert all(torch.equal(gradient, ways[1][2][name]) for name, gradient in ways[0][2].items())


# of each way to attend and each policy one: the others compile the same two programs
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "adm", "but_mod", "pondernet", "but_halting"])
def test_compiled_blocks_give_the_same_numbers_and_are_compiled_once(name):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    settings = {"n_layer": 4, "n_repeat": 3}
    expected = outcome(name, 16, True, **settings)
    model = fill(tiny_model(name, sequence_length=16, **settings), 1).train()
    model.compile_blocks()

    def step():
        model.zero_grad()
        torch.manual_seed(0)
        out = model(tokens(2, 16), targets=tokens(2, 16, seed=1), get_logits=True)
        out["loss"].backward()
        return (
            out["loss"].detach(),
            out["logits"].detach(),
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        )

    assert_same(step(), expected)
    torch.manual_seed(1)
    # models that draw their passes meet other numbers of tokens; one token alone is a case of its own
    for _ in range(12):
        model(tokens(2, 16), targets=tokens(2, 16, seed=1))["loss"].backward()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(12):
        model(tokens(2, 16), targets=tokens(2, 16, seed=1))["loss"].backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs <= 8
