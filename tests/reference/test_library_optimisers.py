"""Optimisers, schedules and muP against the reference numbers of the training library."""

import pytest
import torch
from torch import nn

import config
from optim.optimizers import make_optimizer
from optim.schedules import make_scheduler
from tests.reference.cases import each

FILE = "training_library.json.gz"
SCHEDULERS = {"cosine": "cosine", "linear": "linear_decay", "constant": "constant"}  # its names -> ours


def of(group):
    return lambda case: case["group"] == group


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
