"""Muon, AdamW, their groups and schedules against the reference numbers of the public modern GPT."""

import re
import zlib

import numpy as np
import pytest
import torch

from optim.muon import ADAMW, MUON, Muon
from optim.schedules import TRAPEZOID, Shape, momentum_at
from tests.reference.cases import each, read

FILE = "modern_gpt.json.gz"


def tolerance(part, index=0):
    """The first number of the file's text about a part, or a later one."""
    text = (read(FILE) or {}).get("tolerances", {}).get(part, "1e-6")
    return float(re.findall(r"\d+e-\d+", text)[index])


def made(name, seed, shape, scale, offset=0.0):
    """A tensor of a case, by its name."""
    draws = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF).standard_normal(shape)
    return torch.from_numpy(np.float32(offset) + np.float32(scale) * draws.astype(np.float32))


def trajectory(optimizer, parameters, case, gradient):
    """Weights after each step that a case has, one flat list for all parameters."""
    found = {}
    for step, rate in enumerate(case["lr"]):
        group = optimizer.param_groups[0]
        group["lr"] = rate
        for name in ("momentum", "weight_decay"):
            if isinstance(case.get(name), list):
                group[name] = case[name][step]
        for number, parameter in enumerate(parameters):
            parameter.grad = gradient(step, number)
        optimizer.step()
        found[str(step + 1)] = torch.cat([p.detach().flatten() for p in parameters])
    return found


# Muon


def muon_trajectory(case, dtype):
    names = [f"muon.weight.{number}" for number in range(case["count"])]
    weights = [made(name, case["seed"], case["shape"], case["weight_scale"]) for name in names]
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    group = {"params": parameters, **MUON, "beta2": case["beta2"], "polar_steps": case["ns_steps"]}
    optimizer = Muon([group], lr=0.0, weight_decay=0.0, dtype=dtype)

    def gradient(step, number):
        scale = 0.0 if [step, number] in case["zero_grads"] else case["grad_scale"]
        return made(f"muon.grad.{step}.{number}", case["seed"], case["shape"], scale)

    found = trajectory(optimizer, parameters, case, gradient)
    moments = [optimizer.state[parameter]["second_moment"].flatten() for parameter in parameters]
    return found, torch.cat(moments)


@pytest.mark.parametrize(("precision", "index"), [("fp32", 0), ("bf16", 2)])
@each(FILE, "optim", "muon", "cases")
def test_muon(case, precision, index):
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    found, moments = muon_trajectory(case, dtype)
    bound = tolerance("muon", index)
    for step, right in case[precision]["weights"].items():
        right = torch.tensor(right).flatten()
        torch.testing.assert_close(found[step], right, rtol=0, atol=bound)
    torch.testing.assert_close(moments, torch.tensor(case[precision]["second_moment"]), rtol=0, atol=bound)


# AdamW


@pytest.mark.parametrize("fused", [True, None])
@each(FILE, "optim", "adamw", "cases")
def test_adamw(case, fused):
    weight = made("adamw.weight", case["seed"], case["shape"], case["weight_scale"])
    parameter = torch.nn.Parameter(weight)
    settings = {"betas": case["betas"], "eps": case["eps"], "fused": fused}
    group = {"params": [parameter], **ADAMW, **settings}
    optimizer = Muon([group], lr=0.0, weight_decay=case["weight_decay"])

    def gradient(step, _):
        if step in case["skipped_steps"]:
            return None
        return made(f"adamw.grad.{step}", case["seed"], case["shape"], case["grad_scale"])

    found = trajectory(optimizer, [parameter], case, gradient)
    for step, right in case["weights"].items():
        torch.testing.assert_close(found[step], torch.tensor(right), rtol=0, atol=tolerance("adamw"))


# schedules


@each(FILE, "schedules", "cases")
def test_schedules(case):
    shape = Shape(
        TRAPEZOID,
        1.0,
        0.0,
        1.0,
        0.0,
        warmup_ratio=case["warmup_ratio"],
        warmdown_ratio=case["warmdown_ratio"],
        final_lr_frac=case["final_lr_frac"],
        decay_schedule="linear",
    )
    leg, steps = shape.planned(case["num_iterations"]), case["steps"]
    rates = [shape.rate(leg, step) for step in steps]
    momenta = [momentum_at(MUON["momentum_course"], step) for step in steps]
    decays = [case["weight_decay"] * shape.decay_share(leg, step) for step in steps]
    exactly = {"rel": 0, "abs": tolerance("schedules")}
    assert rates == pytest.approx(case["lr"], **exactly)
    assert momenta == pytest.approx(case["momentum"], **exactly)
    assert decays == pytest.approx(case["muon_weight_decay"], **exactly)
