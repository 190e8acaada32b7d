"""Routing in evaluation: by threshold a model is causal, by capacity it is not."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import tiny_model, tokens

CHANGED_FROM = 11


def early_logits(model, seed):
    """Logits of the first positions where the later tokens were drawn with a seed."""
    idx = tokens(3, 16)
    idx[:, CHANGED_FROM:] = tokens(3, 16 - CHANGED_FROM, seed=seed)
    with torch.no_grad():
        return model(idx, get_logits=True)["logits"][:, :CHANGED_FROM]


def differs_with_later_tokens(model):
    first = early_logits(model, 1)
    return any((early_logits(model, seed) - first).abs().max() > 1e-5 for seed in range(2, 8))


@pytest.mark.parametrize("name", ["adm", "but_mod"])
def test_threshold_routing_is_causal(name):
    assert not differs_with_later_tokens(tiny_model(name, routing="threshold", router_threshold=[0.5, 0.4]))


@pytest.mark.parametrize("name", ["adm", "but_mod"])
def test_capacity_routing_is_not_causal(name):
    assert differs_with_later_tokens(tiny_model(name, eval_length_factor=[0.6, 0.3]))


@pytest.mark.parametrize("name", ["adm", "but_mod"])
def test_threshold_zero_is_full_compute(name):
    full = tiny_model(name)(tokens(2, 16), targets=tokens(2, 16, seed=1))
    routed = tiny_model(name, routing="threshold", router_threshold=[0.0])(
        tokens(2, 16), targets=tokens(2, 16, seed=1)
    )
    assert torch.allclose(full["token_losses"], routed["token_losses"], atol=1e-6)


@pytest.mark.parametrize("name", ["adm", "but_mod"])
def test_threshold_one_is_a_single_pass(name):
    model = tiny_model(name, routing="threshold", router_threshold=[1.0])
    assert float(model(tokens(2, 16))["average_depth"]) == 3.0


@pytest.mark.parametrize("name", ["adm", "but_mod"])
def test_sequences_of_a_batch_are_routed_alone_by_threshold(name):
    """Sequences that keep different numbers of tokens are filled up; what fills them must not be seen."""
    model, idx = tiny_model(name, routing="threshold", router_threshold=[0.5, 0.4]), tokens(5, 16)
    with torch.no_grad():
        together = model(idx, get_logits=True)["logits"]
        alone = torch.cat([model(row.unsqueeze(0), get_logits=True)["logits"] for row in idx])
    assert torch.allclose(together, alone, atol=1e-5)


def test_threshold_counts_the_passes_of_each_token():
    model, idx = tiny_model("adm", routing="threshold", router_threshold=[0.5, 0.4]), tokens(5, 16)
    out = model(idx, get_router_weights=True)
    passes = idx.numel()
    for (positions, scores), threshold in zip(out["router_weights"], (0.5, 0.4), strict=True):
        passes += int(((scores > threshold) & (positions < 16)).sum())
    assert float(out["average_depth"]) == pytest.approx(2 + passes / idx.numel())


def test_training_ignores_the_routing_of_evaluation():
    model = tiny_model(
        "adm", routing="threshold", router_threshold=[1.0], training_length_factor=[1.0, 1.0]
    ).train()
    assert float(model(tokens(2, 16))["average_depth"]) == 5.0
