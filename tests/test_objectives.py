"""Objectives beside next-token prediction: no look ahead, exact gradients without whole logits, the models
that each trains, micro-batches of different sizes, and what is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from data.batch import Batch, PlainSource
from models.loss import IGNORE
from models.variants import VARIANTS
from optim.fit import fit
from optim.objectives import NextToken, distillation
from optim.objectives.distillation import Distillation, distillation_loss
from optim.objectives.multi_token import MultiTokenPrediction, block_like, multi_token_loss
from tests.command_lines import refused
from tests.helpers import tiny_args, tiny_model, tokens
from tests.programs import ROOT
from tests.test_loss import Largest

CAN = [name for name, variant in VARIANTS.items() if not variant.exits_each_pass]
MODERN = ("--block", "modern", "--rope_dtype", "bfloat16")


def batch(seed: int = 0, length: int = 16) -> Batch:
    sequence = tokens(2, length + 1, seed=seed)
    return Batch({"inputs": sequence[:, :-1], "targets": sequence[:, 1:].clone()}, 2 * length)


def multi_token(model: str = "lncot", *flags: str, heads: int = 2) -> MultiTokenPrediction:
    network = tiny_model(model, *flags)
    torch.manual_seed(0)
    return MultiTokenPrediction(network, heads)


def distilled(model: str = "lncot", teacher: str = "base", *flags: str, **settings: Any) -> Distillation:
    return Distillation(tiny_model(model, *flags, seed=1), tiny_model(teacher, *flags), **settings)


# multi-token prediction


@pytest.mark.parametrize("flags", [(), MODERN])
def test_heads_do_not_see_what_they_predict(flags: tuple[str, ...]) -> None:
    """Nor what comes after it."""
    objective, given, changed = multi_token("base", *flags), batch(), 9
    sequence = torch.cat((given["inputs"], given["targets"][:, -1:]), dim=1)
    other = sequence.clone()
    other[:, changed:] = (other[:, changed:] + 1) % 64
    one, two = (objective.losses(each[:, :-1], each[:, 1:])[1] for each in (sequence, other))
    for k, (mine, others) in enumerate(zip(one, two, strict=True), start=1):
        before = changed - 1 - k  # whose targets come before the change
        assert torch.equal(mine.token_losses[:, :before], others.token_losses[:, :before])
        assert not torch.equal(mine.token_losses[:, before], others.token_losses[:, before])


@pytest.mark.parametrize(("encoder", "is_seen"), [("rotary", True), ("none", False)])
def test_heads_have_the_positions_of_their_network(encoder: str, is_seen: bool) -> None:
    torch.manual_seed(0)
    block = block_like(tiny_model("base", "--positional_encoder", encoder).settings)
    x = torch.randn(1, 3, 32)
    swapped = x[:, [1, 0, 2]]
    assert torch.allclose(block(x)[:, 2], block(swapped)[:, 2], atol=1e-6) != is_seen


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_heads_have_a_block_whatever_the_networks_heads(heads: int) -> None:
    settings = tiny_model("base", "--n_head", str(heads), "--n_embd", "24").settings
    assert block_like(settings)(torch.randn(1, 5, 24)).shape == (1, 5, 24)


def test_the_total_is_the_main_loss_and_the_weighted_mean_of_the_heads() -> None:
    objective, given = multi_token(), batch()
    main, depths = objective.losses(given["inputs"], given["targets"])
    expected = main.loss + 0.3 * (depths[0].loss + depths[1].loss) / 2
    assert objective(given).mean.item() == pytest.approx(expected.item(), rel=1e-6)
    assert multi_token_loss(main.loss, []) is main.loss


def test_the_main_loss_is_that_of_the_network_alone() -> None:
    objective, given = multi_token(), batch()
    main = objective.losses(given["inputs"], given["targets"])[0]
    assert torch.equal(main.loss, NextToken(objective.network)(given).mean)


@pytest.mark.parametrize("units", ["block", "pass"])
def test_recomputing_the_heads_changes_no_bit(units: str) -> None:
    gradients = []
    for setting in ("none", units):
        objective = multi_token("lncot", "--activation_checkpointing", setting)
        objective(batch()).mean.backward()
        gradients.append([parameter.grad for parameter in objective.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


# distillation


def dense(objective: Distillation, given: Batch) -> torch.Tensor:
    with torch.no_grad():
        wanted = objective.teacher.logits(objective.teacher.run(given["inputs"]).states)
    mine = objective.network.logits(objective.network.run(given["inputs"]).states)
    return distillation_loss(mine, wanted, given["targets"], objective.temperature, objective.alpha)


@pytest.mark.parametrize("flags", [(), MODERN])
def test_gradients_in_slices_are_those_of_whole_logits(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modern blocks cap their logits, and pad the vocabulary."""
    monkeypatch.setattr(distillation, "SLICE_ELEMENTS", 2 * 5 * 60)
    objective, given = distilled("base", "base", *flags, "--vocab_size", "60"), batch()
    for side in given.tensors.values():
        side.remainder_(60)
    given["targets"][:, 3] = IGNORE
    parameters = list(objective.network.parameters())
    mine, plain = objective(given).mean, dense(objective, given)
    assert mine.item() == pytest.approx(plain.item(), rel=1e-5)
    for one, two in zip(
        *(torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (mine, plain)), strict=True
    ):
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, atol=1e-6, rtol=1e-4)


def test_logits_of_all_tokens_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "SLICE_ELEMENTS", 2 * 4 * 4096)
    flags = ("--vocab_size", "4096", "--n_embd", "4", "--n_head", "1", "--n_layer", "1")
    with Largest() as watch:
        base = (*flags, "--n_layer_begin", "0", "--n_layer_end", "0")
        distilled("base", "base", *base)(batch()).mean.backward()
    assert watch.elements <= 4 * 4096


def test_the_teacher_stays_as_it_is() -> None:
    objective = distilled("lncot", "base")
    teacher = objective.teacher
    teacher.transformer["drop"].p = 0.5  # which only training would have
    before = [parameter.clone() for parameter in teacher.parameters()]
    train(objective, steps=2)
    assert objective.network.training and not any(part.training for part in teacher.modules())
    assert all(torch.equal(one, two) for one, two in zip(before, teacher.parameters(), strict=True))


def test_the_teacher_computes_in_its_own_dtype() -> None:
    objective = distilled(teacher_dtype=torch.bfloat16)
    inputs = batch()["inputs"]
    assert objective._wanted(inputs).factors()[1].dtype == torch.bfloat16
    objective.teacher_dtype = torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert objective._wanted(inputs).factors()[1].dtype == torch.float32


def test_a_student_in_half_precision_comes_close() -> None:
    objective, given = distilled(), batch()
    exact = objective(given).mean.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(given).mean
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=2e-2)


# which models


class Sequences(PlainSource):
    def samples(self, step: int, first: int, count: int) -> Batch:
        sequence = torch.stack([tokens(17, seed=number) for number in range(first, first + count)])
        return Batch({"inputs": sequence[:, :-1], "targets": sequence[:, 1:].clone()}, 16 * count)


def train(objective: Any, steps: int = 3, **settings: Any) -> list[dict[str, Any]]:
    return fit(objective, Sequences(), steps=steps, batch_size=2, device="cpu", **settings).rows


@pytest.mark.slow
@pytest.mark.parametrize("model", CAN)
@pytest.mark.parametrize("make", [multi_token, distilled])
def test_every_model_with_one_state_of_each_token_trains(make: Any, model: str) -> None:
    rows = train(make(model))
    assert all(row["grad_norm"] > 0 for row in rows)


@pytest.mark.slow
def test_a_deeper_model_teaches_a_cotformer() -> None:
    """Whose divergence from it falls on what it sees again and again."""
    student = models.make_model_from_args(tiny_args("lncot"))
    objective = Distillation(student, tiny_model("base", "--n_layer", "6"), temperature=1.0, alpha=1.0)
    source = Sequences()
    source.samples = lambda step, first, count: Sequences.samples(source, 0, 0, count)
    rows = fit(objective, source, steps=25, lr=1e-2, batch_size=2, device="cpu").rows
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_pondernet_teaches() -> None:
    assert train(distilled("base", "pondernet"))


@pytest.mark.parametrize("objective", ["multi_token", "distillation"])
def test_models_with_several_exits_are_refused(objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher", "x"] if objective == "distillation" else []
    lines = refused(capsys, "--model", "pondernet", "--objective", objective, *teacher)
    assert len(lines) == 1 and "is trained on the exits of all passes" in lines[0]


REFUSED = [
    ("--objective multi_token --mtp_heads 0", "--mtp_heads"),
    ("--objective multi_token --mtp_heads 512", "beyond the end of sequences of --sequence_length 512"),
    ("--objective multi_token --mtp_weight -1", "--mtp_weight"),
    ("--objective distillation", "--objective distillation and --teacher need each other"),
    ("--teacher exps/x", "--objective distillation and --teacher need each other"),
    ("--objective multi_token --teacher x", "--objective distillation and --teacher need each other"),
    ("--objective distillation --teacher x --distill_alpha 1.5", "--distill_alpha"),
    ("--objective distillation --teacher x --distill_alpha -0.1", "--distill_alpha"),
    ("--objective distillation --teacher x --distill_temperature 0", "--distill_temperature"),
    ("--objective distillation --teacher x --teacher_dtype auto", "--teacher_dtype"),
    ("--objective distil --teacher x", "--objective"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_bad_values_get_a_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in refused(capsys, *words.split()) if "need each other" not in line]
    lines = lines or [said]
    assert len(lines) == 1 and said in lines[0]


@pytest.mark.slow
def test_examples_of_the_page_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as they stand there."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "library-objectives.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
        assert names["rows"][-1]["loss"] < 0.9 * names["rows"][0]["loss"]


# micro-batches of different sizes


class Uneven(PlainSource):
    """Sample n has n % 3 + 1 tokens that count. knows: it says so without being read."""

    def __init__(self, knows: bool = False) -> None:
        self.knows = knows

    def samples(self, step: int, first: int, count: int) -> Batch:
        batch = Sequences().samples(step, first, count)
        for row, number in enumerate(range(first, first + count)):
            batch["targets"][row, number % 3 + 1 :] = IGNORE
        return Batch(batch.tensors, int((batch["targets"] != IGNORE).sum()))

    def items(self, step: int, first: int, count: int) -> int | None:
        return sum(number % 3 + 1 for number in range(first, first + count)) if self.knows else None


def test_a_source_that_counts_otherwise_than_its_batches_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Uneven, "items", lambda self, step, first, count: 7)
    with pytest.raises(ValueError, match=r"the batches of Uneven count 9 items in step 1, items\(\) says 7"):
        fit(NextToken(tiny_model("base")), Uneven(), steps=1, batch_size=5, device="cpu")


@pytest.mark.parametrize("knows", [False, True])
def test_uneven_micro_batches_are_one_large_batch(knows: bool) -> None:
    weights, losses = [], []
    for size, turns in ((6, 1), (1, 6), (2, 3)):
        network = tiny_model("base")
        rows = fit(
            NextToken(network),
            Uneven(knows),
            steps=3,
            batch_size=size,
            acc_steps=turns,
            opt="sgd",
            device="cpu",
        ).rows
        losses.append([row["loss"] for row in rows])
        weights.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-6)
        assert torch.allclose(weight, weights[0], atol=1e-6)
