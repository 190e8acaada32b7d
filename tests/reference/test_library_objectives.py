"""Accumulation, clipping, multi-token prediction and distillation against the reference numbers of the public
training library.
"""

import zlib

import numpy as np
import pytest
import torch
from torch import nn

from data.batch import Batch, PlainSource
from distributed.world import World
from models.hidden import Hidden
from models.loss import IGNORE
from models.losses import next_token
from optim.evaluate import evaluate
from optim.fit import fit, settings_of
from optim.objectives import Loss, NextToken
from optim.objectives.distillation import (
    Distillation,
    distillation_loss,
    soft_target_loss,
)
from optim.objectives.multi_token import HeadBlock, MultiTokenPrediction
from optim.optimizers import make_optimizer
from optim.setup import autocaster
from optim.step import OptimizerStep
from tests.reference.cases import each, of

FILE = "training_library.json.gz"
CPU = World(torch.device("cpu"))


def each_of(group):
    return each(FILE, "cases", where=of(group))


class States(nn.Module):
    """A network of tokens whose states are given by `run`, and whose head is a matrix alone."""

    may_leave_unused = False

    def __init__(self, head):
        super().__init__()
        self.weight = nn.Parameter(head)

    @property
    def head(self):
        return nn.Identity(), self.weight

    def run(self, inputs):
        raise NotImplementedError


# accumulation


class Table(States):
    """Logits are embed[x] @ head^T."""

    def __init__(self, embed, head):
        super().__init__(torch.tensor(head))
        self.embed = nn.Parameter(torch.tensor(embed))

    def run(self, inputs):
        return Hidden(self.embed[inputs], torch.ones(()))

    def forward(self, idx, targets):
        losses = next_token(self, self.run(idx), targets)
        return {"token_losses": losses.token_losses, "hits": losses.hits, "average_depth": 1.0}


def joined(batch):
    """The positions of a batch as one sequence: the network sees each by itself."""
    return [torch.tensor(batch[name]).reshape(1, -1) for name in ("x", "y")]


class Groups(PlainSource):
    """Sample n is micro-batch n of a stream. Those of a last group that is not full are cut into smaller
    ones.
    """

    def __init__(self, batches, size):
        self.taken = 0
        self.micro_batches = []
        for begin in range(0, len(batches), size):
            group = [joined(batch) for batch in batches[begin : begin + size]]
            if len(group) < size:
                whole = [torch.cat(side, dim=1) for side in zip(*group, strict=True)]
                group = list(zip(*(side.tensor_split(size, dim=1) for side in whole), strict=True))
            self.micro_batches += group

    def samples(self, step, first, count):
        assert count == 1
        inputs, targets = self.micro_batches[first]
        self.taken = first + 1
        return Batch({"inputs": inputs, "targets": targets}, targets.numel())


class Few:
    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def batch(self, numbers):
        inputs, targets = joined(self.batches[int(numbers[0])])
        return Batch({"inputs": inputs, "targets": targets}, targets.numel())


@each_of("accumulation")
def test_accumulation(case):
    given, right = case["input"], case["right"]
    network = Table(given["embed"], given["head"])
    size = given["grad_accumulation_steps"]
    source = Groups(given["batches"], size)
    args = settings_of(
        {
            "iterations": given["max_steps"],
            "batch_size": 1,
            "acc_steps": size,
            "lr": given["learning_rate"],
            "opt": given["optimizer"],
            "beta1": given["momentum"],
            "weight_decay": given["weight_decay"],
            "decayed": "all",
            "grad_clip": max(0.0, given["max_grad_norm"]),
            "device": "cpu",
        }
    )
    objective = NextToken(network)
    optimizer = make_optimizer(network, args)
    steps = OptimizerStep(args, CPU, objective, optimizer, source)
    updates = min(given["max_steps"], len(source.micro_batches) // size)
    history, measured = [], []
    for step, then in enumerate(right["history"]):
        for group in optimizer.param_groups:
            group["lr"] = then["learning_rate"]
        loss, wrong = steps.take(step)
        assert wrong is None
        history.append([loss.item(), steps.meter.last.item()])
        if given["eval_interval"] and (step + 1) % given["eval_interval"] == 0:
            found = evaluate(network, Few(given["eval_batches"]), 1, CPU, autocaster("float32", CPU.device))
            measured.append([step + 1, found["val_loss"]])
    assert updates == right["updates"]
    for mine, then in zip(history, right["history"], strict=True):
        assert mine == pytest.approx([then["loss"], then["grad_norm"]], rel=1e-5, abs=1e-5)
    assert measured == [pytest.approx(each, abs=1e-5) for each in right.get("evals") or []]
    assert min(source.taken, len(given["batches"])) == right["batches_taken"]
    for mine, name in ((network.embed, "embed"), (network.weight, "head")):
        assert torch.allclose(mine, torch.tensor(right[name]), rtol=1e-5, atol=1e-5)


# clipping


class Slopes(nn.Module):
    """Its gradient is given."""

    may_leave_unused = False

    def __init__(self, grads):
        super().__init__()
        self.grads = {name: torch.tensor(grad) for name, grad in grads.items()}
        self.network = nn.ParameterDict({name: torch.zeros_like(grad) for name, grad in self.grads.items()})

    def forward(self, batch):
        return Loss(sum((self.network[name] * grad).sum() for name, grad in self.grads.items()), batch.count)


class Nothing(PlainSource):
    def samples(self, step, first, count):
        return Batch({}, count)


@each_of("clip")
def test_clipping(case):
    given, right = case["input"], case["right"]
    objective = Slopes(given["grads"])
    step = {"steps": 1, "lr": 1.0, "opt": "sgd", "beta1": 0.0, "weight_decay": 0.0, "device": "cpu"}
    fitted = fit(objective, Nothing(), grad_clip=max(0.0, given["max_grad_norm"]), **step)
    assert fitted.rows[0]["grad_norm"] == pytest.approx(right["norm"], rel=1e-5)
    for name, grad in right["grads"].items():
        assert torch.allclose(-objective.network[name], torch.tensor(grad), rtol=1e-5, atol=1e-5)


# multi-token prediction


def by_name(name, shape, seed, scale):
    draws = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF).standard_normal(shape)
    values = torch.from_numpy(draws.astype(np.float32))
    return 1 + 0.1 * values if len(shape) == 1 else scale * values


class Given(States):
    """States that do not depend on the tokens."""

    def __init__(self, hidden, embed):
        super().__init__(embed)
        self.hidden = nn.Parameter(hidden)
        self.embedding = nn.Embedding(*embed.shape)
        self.embedding.weight = self.weight

    def run(self, inputs):
        return Hidden(self.hidden, torch.ones(()))


def multi_token(given):
    width = given["d_model"]
    hidden = by_name("hidden", (given["batch"], given["seq"], width), given["seed"], 1.0)
    embed = by_name("embed.weight", (given["vocab"], width), given["seed"], 0.3)
    blocks = [nn.Identity() for _ in range(given["n_predict"])]
    if given["block"] == "transformer":
        blocks = [HeadBlock(width, given["block_heads"]) for _ in blocks]
    objective = MultiTokenPrediction(Given(hidden, embed), given["n_predict"], given["mtp_weight"], blocks)
    for name, parameter in objective.named_parameters():
        if name.startswith("mtp_heads."):
            parameter.data = by_name(name, tuple(parameter.shape), given["seed"], 0.3)
    return objective


@each_of("mtp")
def test_multi_token_losses(case):
    given, right = case["input"], case["right"]
    targets = torch.tensor(given["targets"])
    main, depths = multi_token(given).losses(targets, targets)
    assert main.loss.item() == pytest.approx(right["main_loss"], abs=2e-5)
    assert [depth.loss.item() for depth in depths] == pytest.approx(right["depth_losses"], abs=2e-5)
    for mine, name in zip(depths, right["nll_depth"], strict=True):
        assert torch.allclose(mine.token_losses, torch.tensor(name), atol=5e-5)
    assert torch.allclose(main.token_losses, torch.tensor(right["nll_main"]), atol=5e-5)
    assert [main.token_losses.shape[1], *(each.token_losses.shape[1] for each in depths)] == right[
        "positions"
    ]


@each_of("mtp")
def test_multi_token_total_and_gradients(case):
    given, right = case["input"], case["right"]
    objective, targets = multi_token(given), torch.tensor(given["targets"])
    total = objective(Batch({"inputs": targets, "targets": targets}, targets.numel())).mean
    total.backward()
    assert total.item() == pytest.approx(right["total_loss"], abs=2e-5)
    names = {"network.hidden": "hidden", "network.weight": "embed.weight"}
    norms = {}
    for name, parameter in objective.named_parameters():
        grad = torch.zeros(()) if parameter.grad is None else parameter.grad
        norms[names.get(name, name)] = grad.norm().item()
    assert norms == pytest.approx(right["grad_norm"], rel=1e-4, abs=1e-6)


# distillation


class Fixed(States):
    """Its logits are given."""

    def __init__(self, logits):
        values = torch.tensor(logits)
        super().__init__(torch.eye(values.shape[-1]))
        self.weight.requires_grad_(False)
        self.logits = nn.Parameter(values)

    def run(self, inputs):
        return Hidden(self.logits, torch.ones(()))


def distilled(given, **changes):
    """The mean loss of a case by the objective, and its gradient."""
    given = {**given, **changes}
    student, teacher = Fixed(given["student_logits"]), Fixed(given["teacher_logits"])
    objective = Distillation(student, teacher, given["temperature"], given["alpha"])
    tokens, mask = torch.tensor(given["tokens"]), torch.tensor(given["mask"], dtype=torch.bool)
    targets = tokens[:, 1:].masked_fill(~mask, IGNORE)
    loss = objective(Batch({"inputs": tokens[:, :-1], "targets": targets}, int(mask.sum()))).mean
    loss.backward()
    return loss.item(), student.logits.grad


@each_of("distillation")
def test_distillation(case):
    right = case["right"]
    loss, grad = distilled(case["input"])
    assert loss == pytest.approx(right["loss"], abs=2e-5)
    assert torch.allclose(grad, torch.tensor(right["grad_student"]), atol=2e-5)


@each_of("distillation")
def test_parts_of_distillation(case):
    given, right = case["input"], case["right"]
    assert distilled(given, alpha=1.0)[0] == pytest.approx(right["kl_times_T2"], abs=2e-5)
    assert distilled(given, alpha=0.0)[0] == pytest.approx(right["ce"], abs=2e-5)


@each_of("distillation")
def test_functions_of_logits(case):
    given, right = case["input"], case["right"]
    student, teacher = torch.tensor(given["student_logits"]), torch.tensor(given["teacher_logits"])
    mask = torch.tensor(given["mask"])
    targets = torch.tensor(given["tokens"])[:, 1:].masked_fill(mask == 0, IGNORE)
    divergence = soft_target_loss(student, teacher, given["temperature"], mask)
    assert divergence.item() == pytest.approx(right["kl_times_T2"], abs=2e-5)
    loss = distillation_loss(student, teacher, targets, given["temperature"], given["alpha"])
    assert loss.item() == pytest.approx(right["loss"], abs=2e-5)
