"""Optimisers, schedules and muP against the reference numbers of the training library."""

import pytest
import torch
from torch import nn

import config
from models import make_model_from_args
from models.attention import AttentionPlan
from models.layers import LayerInputs
from models.network import EMBEDDING, HEAD, MATRIX, NORM, SCALAR, roles_of
from optim.optimizers import make_optimizer
from optim.schedules import make_scheduler
from tests.reference.cases import each, of

FILE = "training_library.json.gz"
SCHEDULERS = {"cosine": "cosine", "linear": "linear_decay", "constant": "constant"}  # its names -> ours


def settings(given):
    """Ours, of the library's names of them; names that it does not have either are kept."""
    schedule = given.get("lr_schedule", given.get("schedule", "constant"))
    names = {"learning_rate": "lr", "max_steps": "iterations", "warmup_steps": "warmup_steps"}
    names |= {"optimizer": "opt", "weight_decay": "weight_decay"}
    values = {ours: given[name] for name, ours in names.items() if name in given}
    return {"scheduler": SCHEDULERS.get(schedule, schedule), "decayed": "all", **values}


def made(network, given, **values):
    """Optimiser and schedule of a network, in the middle of nothing: at step 0."""
    args = config.add_defaults({**settings(given), **values})
    optimizer = make_optimizer(network, args)
    return optimizer, make_scheduler(optimizer, args)


# schedules


@each(FILE, "cases", where=of("lr_schedule"))
def test_lr_schedule(case):
    optimizer, schedule = made(nn.Linear(1, 1), case["input"])
    found = {}
    for step in range(max(case["input"]["steps"]) + 1):
        found[step] = optimizer.param_groups[0]["lr"]
        schedule.step()
    rates = [found[step] for step in case["input"]["steps"]]
    assert rates == pytest.approx(case["right"], rel=1e-5, abs=1e-9)


@each(FILE, "cases", where=of("bad_names"))
def test_bad_names(case):
    with pytest.raises(ValueError, match=case["right"]["names"]):
        made(nn.Linear(1, 1), case["input"])


# optimisers


def flags_of(given):
    """Of the settings that a case holds fixed."""
    hyper = given["hyper"]
    flags = {"beta1": hyper["momentum"]} if "momentum" in hyper else {}
    if "betas" in hyper:
        flags |= dict(zip(("beta1", "beta2"), hyper["betas"], strict=True))
    if given["optimizer"] == "adafactor":
        flags["adafactor_eps"] = hyper["eps"][0]
        if not hyper["weight_decay_used"]:
            flags["weight_decay"] = 0.0
    return flags


@each(FILE, "cases", where=of("optimizer"))
def test_optimizer(case):
    given = case["input"]
    parameters = {name: nn.Parameter(torch.tensor(given[name])) for name in ("W", "b")}
    network = nn.Linear(len(given["W"][0]), len(given["W"]), bias=False)
    network.weight = parameters["W"]
    network.register_parameter("b", parameters["b"])
    optimizer, _ = made(network, given, **flags_of(given))
    for rate, right, *gradients in zip(
        given["lrs"], case["right"], given["grad_W"], given["grad_b"], strict=True
    ):
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.data, torch.tensor(right[name]), rtol=2e-4, atol=5e-6)


# muP

UNCHANGED = "lr_norms_biases_and_untied_head"
RATES_OF = {MATRIX: "lr_hidden_matrices", EMBEDDING: "lr_embedding"}
RATES_OF |= dict.fromkeys((NORM, SCALAR, HEAD), UNCHANGED)


def network_of(case, block="published", **changes):
    """A network of a case, with biases where its blocks can have them."""
    names = {"d_model": "n_embd", "mup_base_width": "mup_base_width", "n_heads": "n_head"}
    given = {ours: case["input"][name] for name, ours in names.items()}
    given |= {"model": "base", "block": block, "n_layer": 2, "vocab_size": 512, "bias": block == "published"}
    torch.manual_seed(0)
    return make_model_from_args(config.add_defaults({**given, **changes}))


@pytest.mark.parametrize("block", ["published", "modern"])
@each(FILE, "cases", where=of("mup"))
def test_rates_of_mup(case, block):
    network = network_of(case, block)
    roles = roles_of(network)
    optimizer, schedule = made(network, case["input"])
    for step in range(max(case["input"]["steps"]) + 1):
        if step in case["input"]["steps"]:
            index = case["input"]["steps"].index(step)
            for group in optimizer.param_groups:
                for key in {RATES_OF.get(roles[name], UNCHANGED) for name in group["param_names"]}:
                    assert group["lr"] == pytest.approx(case["right"][key][index], rel=1e-6)
        schedule.step()


@pytest.mark.parametrize("key", ["attention_scale", "attention_scale_without_mup"])
@pytest.mark.parametrize("block", ["published", "modern"])
@each(FILE, "cases", where=of("mup"))
def test_attention_scale_of_mup(case, block, key):
    changes = {"mup_base_width": None} if key.endswith("without_mup") else {}
    network, plain = network_of(case, block, **changes), network_of(case, block, mup_base_width=None)
    plain.load_state_dict(network.state_dict())
    x = torch.randn(1, 4, case["input"]["d_model"])
    rope = network.transformer["wpe"](torch.arange(4).unsqueeze(0))
    inputs = LayerInputs(torch.zeros(1, 4).long(), x, torch.ones(()), torch.ones(()), None)
    q, k, v = plain.transformer["h"][0].project(x, None, rope, inputs)
    scaled, *_ = network.transformer["h"][0].project(x, None, rope, inputs)
    found = network.transformer["h"][0].attn.attend(scaled, [(k, v)], AttentionPlan(None))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=case["right"][key])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@each(FILE, "cases", where=of("mup"))
def test_logit_factor_of_mup(case):
    network, plain = network_of(case), network_of(case, mup_base_width=None)
    plain.load_state_dict(network.state_dict())
    states = torch.randn(5, case["input"]["d_model"])
    expected = case["right"]["logit_factor"] * plain.logits(states)
    torch.testing.assert_close(network.logits(states), expected, rtol=1e-5, atol=1e-7)


@each(FILE, "cases", where=of("mup"))
def test_initial_weights_of_mup(case):
    wide = network_of(case)
    base = network_of(case, n_embd=case["input"]["mup_base_width"])
    kinds = {"hidden_matrices": MATRIX, "embedding": EMBEDDING}
    for kind, right in case["right"]["init_std_ratio_to_base_width"].items():
        names = [name for name, role in roles_of(wide).items() if role == kinds[kind]]
        for name in names:
            ratio = wide.state_dict()[name].std() / base.state_dict()[name].std()
            assert ratio.item() == pytest.approx(right, rel=0.05)
