"""Which parameters a model has, what each is to an optimiser, and the groups that rules make of that."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from errors import UserError
from models import make_model_from_args
from models.network import EMBEDDING, FROZEN, MATRIX, NORM, ROUTER, SCALAR, roles_of
from models.variants import VARIANTS
from optim.optimizers import PUBLISHED, ParameterRule, make_optimizer, parameter_groups
from optim.schedules import make_scheduler
from tests.helpers import tiny_args, tiny_model


@pytest.mark.parametrize("model", VARIANTS)
def test_every_parameter_has_one_role(model: str) -> None:
    network = tiny_model(model)
    assert list(roles_of(network)) == [name for name, _ in network.named_parameters()]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("transformer.wte.weight", EMBEDDING),
        ("transformer.h_mid.0.attn.c_attn.weight", MATRIX),
        ("transformer.h_mid.0.attn.c_attn.bias", SCALAR),
        ("transformer.ln_mid.weight", NORM),
        ("transformer.mod.0.mod_router.weight", ROUTER),
        ("depth_emb.embs.weight", EMBEDDING),
    ],
)
def test_roles_of_the_transformer(name: str, role: str) -> None:
    assert roles_of(tiny_model("adm", bias=True, depth_embedding="learned"))[name] == role


def test_a_parameter_without_gradient_is_frozen() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    network[0].weight.requires_grad_(False)
    assert roles_of(network) == {"0.weight": FROZEN, "0.bias": SCALAR, "1.weight": NORM, "1.bias": SCALAR}


def test_frozen_parameters_are_in_no_group() -> None:
    network = nn.Linear(2, 2)
    network.weight.requires_grad_(False)
    assert [name for group in parameter_groups(network) for name, _ in group["params"]] == ["bias"]


def test_a_role_that_no_rule_has_is_an_error() -> None:
    with pytest.raises(UserError, match="which bias has not"):
        parameter_groups(nn.Linear(2, 2), rules=PUBLISHED[:1])


def test_a_rule_gives_its_roles_a_rate_of_their_own() -> None:
    network = nn.Linear(2, 2)
    rules = (ParameterRule(frozenset((MATRIX,)), rate=10.0), ParameterRule(frozenset((SCALAR,))))
    optimizer = torch.optim.SGD(parameter_groups(network, rules=rules))
    schedule = make_scheduler(optimizer, tiny_args("base", scheduler="cos", lr=0.5))
    rates = schedule.get_last_lr()
    assert rates[0] == 10 * rates[1] > 0


def test_what_an_objective_has_of_its_own_is_named_so() -> None:
    extras = {"heads.weight": nn.Parameter(torch.ones(2, 2))}
    optimizer = make_optimizer(nn.Linear(2, 2), tiny_args("base", weight_decay=0.5), extras)
    decaying = next(group for group in optimizer.param_groups if group["weight_decay"])
    assert decaying["param_names"] == ["objective.heads.weight", "weight"]


@pytest.mark.parametrize("part", ["attn", "mlp", "norm"])
def test_biases_are_a_setting_of_each_part(part: str) -> None:
    owners = {"attn": ".attn.", "mlp": ".mlp.", "norm": "ln_"}
    names = [name for name, _ in tiny_model("lncot", **{f"{part}_bias": True}).named_parameters()]
    biases = {name for name in names if name.endswith(".bias")}
    assert biases == {name.replace("weight", "bias") for name in names if owners[part] in name} | biases
    assert biases and all(owners[part] in name for name in biases)


@pytest.mark.parametrize(("scaled", "std"), [(True, 0.02 / math.sqrt(2 * 4)), (False, 0.02)])
def test_residual_projections_begin_scaled_or_not(scaled: bool, std: float) -> None:
    args = tiny_args("base", n_layer=4, n_embd=64, scaled_init=scaled)
    torch.manual_seed(0)
    weight = make_model_from_args(args).transformer.h[0].mlp.c_proj.weight
    assert weight.std().item() == pytest.approx(std, rel=0.05)
