"""Optimisers: which parameters decay, and states that go on exactly or are refused."""

import re

import pytest
import torch
from torch import nn

import models
from errors import UserError
from models.variants import VARIANTS
from models.weights import load_weights
from optim.checkpoint import load_checkpoint
from optim.optimizers import load_optimizer_state, make_optimizer
from tests.helpers import fill, same, saved, tiny_args, tokens

# groups


def grouped(model, opt="adamw"):
    args = tiny_args(
        model, "--bias", "--depth_embedding", "learned", "--depth_random_method", "sb_act", "--opt", opt
    )
    instance = models.make_model_from_args(args)
    return instance, make_optimizer(instance, args).param_groups


@pytest.mark.parametrize("model", VARIANTS)
def test_every_parameter_lands_in_exactly_one_group(model):
    instance, groups = grouped(model)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(
        id(p) for p in instance.parameters()
    )


@pytest.mark.parametrize("opt", ["adamw", "sgd", "adafactor", "lion"])
@pytest.mark.parametrize("model", VARIANTS)
def test_only_linear_weights_decay_and_the_tied_head_does_not(model, opt):
    instance, groups = grouped(model, opt)
    decaying = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    linear = {f"{name}.weight" for name, module in instance.named_modules() if isinstance(module, nn.Linear)}
    assert decaying == linear - {"lm_head.weight", "to_logits.1.weight"}


@pytest.mark.parametrize("opt", ["adamw", "sgd", "adafactor", "muon", "lion"])
def test_every_optimiser_lowers_the_loss(opt):
    args = tiny_args("lncot", "--opt", opt, "--lr", "0.01", "--scheduler", "none", "--beta1", "0.5")
    instance = fill(models.make_model_from_args(args), 5).train()
    optimizer = make_optimizer(instance, args)
    losses = []
    for _ in range(8):
        loss = instance(tokens(4, 16), targets=tokens(4, 16, seed=1))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# states

OPTIMIZERS = ["adamw", "sgd", "adafactor", "muon", "lion"]


def trained(opt, steps=3, model=None, optimizer=None):
    """A tiny model and its optimiser after some steps."""
    args = tiny_args("lncot", "--opt", opt, "--depth_embedding", "learned")
    model = model or fill(models.make_model_from_args(args), 5)
    optimizer = optimizer or make_optimizer(model, args)
    for step in range(steps):
        model(tokens(2, 16, seed=step), targets=tokens(2, 16, seed=step + 1))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_optimiser_goes_on_exactly_from_its_saved_state(tmp_path, opt):
    model, optimizer = trained(opt)
    state = load_checkpoint(
        saved(tmp_path / "ckpt.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    )
    unbroken, _ = trained(opt, 3, model, optimizer)
    second, second_optimizer = trained(opt, 0)
    load_weights(second, state["model"])
    load_optimizer_state(second_optimizer, state["optimizer"])
    resumed, _ = trained(opt, 3, second, second_optimizer)
    assert same(dict(resumed.state_dict()), dict(unbroken.state_dict()))


def matrix_state(optimizer):
    """(parameter name, state name, state tensor) of the first state that follows the shape of a matrix."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state[parameter].items():
                if parameter.dim() == 2 and isinstance(value, torch.Tensor) and value.dim() == 2:
                    return name, key, value
    raise AssertionError("no state")


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_optimiser_state_of_another_shape_is_named_with_both_shapes(opt):
    _, optimizer = trained(opt)
    name, key, value = matrix_state(optimizer)
    shape = tuple(value.shape)
    state = optimizer.state_dict()
    for entry in state["state"].values():
        if entry.get(key) is value:
            entry[key] = torch.zeros(shape[0] + 1, shape[1])
    expected = f"{key} of {name} is {(shape[0] + 1, shape[1])} in the file, {shape} in this run"
    with pytest.raises(UserError, match=re.escape(expected)):
        load_optimizer_state(trained(opt, 0)[1], state)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [("adamw", "sgd"), ("sgd", "adamw"), ("adafactor", "adamw"), ("adamw", "adafactor")],
)
def test_state_of_another_optimiser_is_refused(saved_by, loaded_by):
    with pytest.raises(UserError, match="another optimiser"):
        load_optimizer_state(trained(loaded_by, 0)[1], trained(saved_by, 1)[1].state_dict())


def test_optimiser_state_of_other_parameters_names_them():
    args = tiny_args("lncot", "--depth_embedding", "learned", "--bias")
    state = make_optimizer(models.make_model_from_args(args), args).state_dict()
    with pytest.raises(UserError, match=r"parameters differ .*transformer\.h_begin\.0\.attn\.c_attn\.bias"):
        load_optimizer_state(trained("adamw", 0)[1], state)


def test_optimiser_state_without_names_is_refused():
    state = trained("adamw", 1)[1].state_dict()
    for group in state["param_groups"]:
        del group["param_names"]
    with pytest.raises(UserError, match="parameters differ"):
        load_optimizer_state(trained("adamw", 0)[1], state)
