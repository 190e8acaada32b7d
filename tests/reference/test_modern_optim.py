"""Muon, AdamW, their groups and schedules against the reference numbers of the public modern GPT."""

import re
import zlib

import numpy as np
import pytest
import torch

import config
import models
from data.batch import Batch, PlainSource
from optim.fit import fit
from optim.muon import ADAMW, MUON, POLAR_EXPRESS, Muon, rate_factor
from optim.objectives import NextToken
from optim.optimizers import make_optimizer
from optim.schedules import TRAPEZOID, Shape, make_scheduler, momentum_at
from optim.smoothed_loss import SmoothedLoss
from recipes.horizon import BASE_WIDTH
from tests.reference.cases import each, read
from tests.reference.test_modern_gpt import case_args

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


@each(FILE, "optim", "polar_express")
def test_coefficients_of_polar_express(case):
    assert tuple(case) in POLAR_EXPRESS


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


# groups and whole trainings


def optimiser_flags(flags, width):
    """Ours, as the public code would build its optimiser for a network of some width."""
    scale = (width / BASE_WIDTH) ** -0.5
    beta1, beta2 = flags["adam_betas"]
    return {
        "opt": "muon",
        "lr": flags["matrix_lr"],
        "embedding_lr": scale * flags["embedding_lr"],
        "unembedding_lr": scale * flags["unembedding_lr"],
        "scalar_lr": flags["scalar_lr"],
        "beta1": beta1,
        "beta2": beta2,
        "scheduler": "trapezoid",
        "decay_schedule": "linear",
    }


@each(FILE, "optim", "groups", "cases")
def test_groups(case):
    args = case_args(case)
    given = optimiser_flags(case["flags"], args.n_embd)
    args = config.add_defaults({**vars(args), **given, "weight_decay": case["flags"]["weight_decay"]})
    optimizer = make_optimizer(models.make_model_from_args(args), args)
    make_scheduler(optimizer, args)
    found = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    assert sorted(found) == sorted(name for group in case["groups"] for name in group["params"])
    for right in case["groups"]:
        for name in right["params"]:
            group = found[name]
            assert group["kind"] == right["kind"]
            assert (group["lr"], group["weight_decay"]) == pytest.approx(
                (right["lr"], right["weight_decay"]), rel=1e-9
            )
            if right["kind"] == "adamw":
                assert (list(group["betas"]), group["eps"]) == (right["betas"], right["eps"])
                continue
            settings = group["momentum_course"][1], group["polar_steps"], group["beta2"]
            assert settings == (right["momentum"], right["ns_steps"], right["beta2"])
            assert rate_factor(right["shape"]) == pytest.approx(right["effective_lr_factor"], rel=1e-9)


class MicroBatches(PlainSource):
    """Those of a case, by their numbers in the training."""

    def __init__(self, case):
        self.case = case

    def samples(self, step, first, count):
        seed, shape = self.case["seed"] * 1000 + first // count, (count, self.case["T"] + 1)
        ids = np.random.RandomState(seed).randint(0, self.case["config"]["vocab_size"], shape)
        ids = torch.from_numpy(ids)
        return Batch({"inputs": ids[:, :-1], "targets": ids[:, 1:]}, count * self.case["T"])


def started(case):
    """The network of a case, with the weights of its formula."""
    network = models.make_model_from_args(case_args(case, "bfloat16"))
    for name, parameter in network.named_parameters():
        _, scale, offset = next(rule for rule in case["rules"] if rule[0] in name)
        parameter.data = made(name, case["seed"], parameter.shape, scale, offset)
    return network


@pytest.mark.parametrize(
    ("dtype", "key", "index"), [("float32", "fp32_muon", 0), ("bfloat16", "bf16_muon", 2)]
)
@each(FILE, "optim", "train", "cases")
def test_whole_trainings(case, dtype, key, index):
    network, right = started(case), case[key]
    rows = fit(
        NextToken(network),
        MicroBatches(case),
        steps=case["num_iterations"],
        batch_size=case["batch"],
        acc_steps=case["accumulation"],
        weight_decay=case["weight_decay"],
        muon_dtype=dtype,
        device="cpu",
        dtype="float32",
        **{name: case[name] for name in ("warmup_ratio", "warmdown_ratio", "final_lr_frac")},
        **optimiser_flags(case["optimizer_flags"], case["config"]["n_embd"]),
    ).rows
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses == pytest.approx(right["losses"], abs=tolerance("train", index))
    norms = {name: float(p.detach().norm()) for name, p in network.named_parameters()}
    near = 1e-4 if key == "fp32_muon" else 0.2
    assert norms == pytest.approx(right["final_param_norm"], rel=near)


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


@each(FILE, "loss_ema", "cases")
def test_smoothed_loss(case):
    smoothed, found = SmoothedLoss(0), []
    for loss in case["losses"]:
        smoothed.add(loss)
        found.append(smoothed.value)
    assert found == pytest.approx(case["debiased"], rel=0, abs=tolerance("schedules"))
