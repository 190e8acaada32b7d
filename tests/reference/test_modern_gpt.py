"""The modern GPT against the public code's outputs, gradients, shapes and starting values."""

import zlib

import numpy as np
import pytest
import torch

import config
import models
from models.macs import training_flops_per_token
from models.network import EMBEDDING, HEAD, MATRIX, RESIDUAL_SCALAR, VALUE_EMBEDDING, X0_SCALAR, roles_of
from models.weights import load_weights
from optim.generation import Sampling, Session, generate
from tests.reference.cases import each

FILE = "modern_gpt.json.gz"
each_model = each(FILE, "model", "cases")
each_start = each(FILE, "init", "cases")
ROLES = {
    "wte": EMBEDDING,
    "value_embeds": VALUE_EMBEDDING,
    "lm_head": HEAD,
    "transformer_matrices": MATRIX,
}


def case_args(case, rope_dtype="float32"):
    shape = {
        name: case["config"][name] for name in ("n_layer", "n_head", "n_kv_head", "n_embd", "window_pattern")
    }
    return config.add_defaults(
        {
            "model": "base",
            "block": "modern",
            "sequence_length": case["config"]["sequence_len"],
            "vocab_size": case["config"]["vocab_size"],
            "rope_dtype": rope_dtype,
            **shape,
        }
    )


def drawn(name, shape, seed, scale, offset):
    """The tensor that the file's formula makes."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    normal = generator.standard_normal(shape).astype(np.float32)
    return torch.from_numpy(np.float32(offset) + np.float32(scale) * normal)


def case_model(case, rope_dtype="float32"):
    """The case's weights, under the names that the public code gives them."""
    state = {}
    for name, shape in case["params"]:
        _, scale, offset = next(rule for rule in case["rules"] if rule[0] in name)
        state[name] = drawn(name, shape, case["seed"], scale, offset)
    model = models.make_model_from_args(case_args(case, rope_dtype))
    load_weights(model, state)
    return model


def case_batch(case):
    shape = case["batch"], case["T"] + 1
    ids = np.random.RandomState(case["seed"]).randint(0, case["config"]["vocab_size"], shape)
    ids = torch.from_numpy(ids)
    targets = ids[:, 1:].clone()
    for row, position in case["ignored_targets"]:
        targets[row, position] = -1
    return ids[:, :-1], targets


both_tables = pytest.mark.parametrize("tables", ["float32", "bfloat16"])
KEYS = {"float32": "rope_fp32", "bfloat16": "rope_bf16"}


@both_tables
@each_model
def test_logits(case, tables):
    inputs, _ = case_batch(case)
    with torch.no_grad():
        logits = case_model(case, tables).eval()(inputs, get_logits=True)["logits"]
    for (row, position), expected in zip(case["logit_positions"], case[KEYS[tables]]["logits"], strict=True):
        assert logits[row, position].tolist() == pytest.approx(expected, abs=1e-4)


@both_tables
@each_model
def test_loss(case, tables):
    inputs, targets = case_batch(case)
    with torch.no_grad():
        loss = case_model(case, tables)(inputs, targets)["loss"].item()
    assert loss == pytest.approx(case[KEYS[tables]]["loss"], abs=1e-5)


@each(FILE, "model", "cases", where=lambda case: "token_loss" in case["rope_bf16"])
def test_loss_of_each_token(case):
    with torch.no_grad():
        losses = case_model(case, "bfloat16")(*case_batch(case))["token_losses"]
    expected = torch.tensor(case["rope_bf16"]["token_loss"]).view_as(losses)
    assert (losses - expected).abs().max().item() < 1e-4


@both_tables
@each_model
def test_gradient_norms(case, tables):
    model = case_model(case, tables)
    model(*case_batch(case))["loss"].backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert norms == pytest.approx(case[KEYS[tables]]["grad_norm"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["resid_lambdas", "x0_lambdas"])
@each_model
def test_gradients_of_scalars(case, name):
    model = case_model(case, "bfloat16")
    model(*case_batch(case))["loss"].backward()
    expected = case["rope_bf16"][f"grad_{name}"]
    assert model.get_parameter(name).grad.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@each_model
def test_names_and_shapes(case):
    model = models.make_model_from_args(case_args(case))
    assert {name: list(value.shape) for name, value in model.named_parameters()} == dict(case["params"])


@each_model
def test_parameters_by_role(case):
    model = models.make_model_from_args(case_args(case))
    counts = dict.fromkeys((*ROLES.values(), RESIDUAL_SCALAR, X0_SCALAR), 0)
    for name, role in roles_of(model).items():
        counts[role] += model.get_parameter(name).numel()
    expected = case["scaling_params"]
    assert {kind: counts[role] for kind, role in ROLES.items()} == {kind: expected[kind] for kind in ROLES}
    assert counts[RESIDUAL_SCALAR] + counts[X0_SCALAR] == expected["scalars"]
    assert sum(counts.values()) == expected["total"] == case["n_params"]


@each_model
def test_flops_per_token(case):
    settings = models.make_model_from_args(case_args(case)).settings
    assert training_flops_per_token(settings) == case["flops_per_token"]


@each_model
def test_windows(case):
    assert models.make_model_from_args(case_args(case)).settings.windows == case["windows"]


@each_model
def test_value_embedding_layers(case):
    settings = models.make_model_from_args(case_args(case)).settings
    assert settings.value_layers == case["value_embedding_layers"]


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@each_model
def test_greedy_continuation(case, cached):
    prompt, expected = case["greedy"]["prompt"], case["greedy"]["tokens"]
    model = case_model(case, "bfloat16").eval()
    if cached:
        session = Session(model, 1, torch.device("cpu"), longest=len(prompt) + len(expected))
        vocabulary = case["config"]["vocab_size"]
        ends = lambda index, tokens: False  # noqa: E731
        found = [
            token
            for _, token in generate(
                session, [prompt], len(expected), Sampling(temperature=0), 0, vocabulary, ends
            )
        ]
    else:
        found = []
        with torch.no_grad():
            while len(found) < len(expected):
                logits = model(torch.tensor([prompt + found]), get_logits=True)["logits"]
                found.append(logits[0, -1].argmax().item())
    assert found == expected


@each_start
def test_starting_values(case):
    torch.manual_seed(0)
    model = models.make_model_from_args(case_args(case))
    wrong = []
    for parameter in case["params"]:
        value = model.get_parameter(parameter["name"]).detach()
        n = value.numel()
        assert list(value.shape) == parameter["shape"]
        if parameter["distribution"] == "constant":
            fits = bool((value == torch.tensor(parameter["value"])).all())
        else:
            std = parameter["std"]
            fits = (
                abs(value.std().item() / std - 1) < 6 / n**0.5 and abs(value.mean().item()) < 5 * std / n**0.5
            )
        if parameter["distribution"] == "uniform":
            fits = fits and 0.98 < value.abs().max().item() / parameter["bound"] <= 1
        if not fits:
            wrong.append(parameter["name"])
    assert wrong == []


@each_start
def test_no_other_parameters_start(case):
    model = models.make_model_from_args(case_args(case))
    assert {name for name, _ in model.named_parameters()} == {entry["name"] for entry in case["params"]}
