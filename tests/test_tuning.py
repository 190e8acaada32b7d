"""Objectives of fine-tuning: what counts, policy and reference alike, and what is refused."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import config
from data.batch import Batch, PlainSource
from data.example_sources import PairSet, SftSource
from data.examples import open_examples
from distributed.world import World
from errors import UserError
from models import loss as loss_module
from models.losses import next_token
from models.variants import VARIANTS
from optim.evaluate import evaluate
from optim.fit import fit
from optim.objectives import NextToken
from optim.objectives.dpo import Dpo
from optim.objectives.preferences import completion_logps, group_advantages, grpo_loss
from optim.objectives.sft import Answers, Sft
from optim.setup import autocaster
from optim.tracked import PREFERENCES, evaluations_of, main_quantity
from optim.tuning_evaluations import HeldOutPairs, measure_pairs
from tests.command_lines import refused
from tests.helpers import tiny_args, tiny_model, tokens
from tests.programs import ROOT
from tests.test_loss import Largest
from tests.tuned import sums

CPU = World(torch.device("cpu"))
CAN = [name for name, variant in VARIANTS.items() if not variant.exits_each_pass]
MODERN = ("--block", "modern", "--rope_dtype", "bfloat16")


def pairs(seed: int = 0, length: int = 16) -> Batch:
    """Two pairs whose prompts have 5 tokens."""
    tensors = {}
    for number, side in enumerate(("chosen", "rejected")):
        tensors[side] = tokens(2, length + 1, seed=seed + number)
        tensors[side][:, :5] = tokens(2, 5, seed=seed)
        mask = torch.zeros(2, length, dtype=torch.bool)
        mask[:, 4 : 9 + number] = True
        tensors[f"{side}_mask"] = mask
    return Batch(tensors, 2)


def policy_and_reference(model: str, *flags: str) -> Dpo:
    return Dpo(tiny_model(model, *flags, seed=1), tiny_model(model, *flags))


# log-probabilities


def dense(network: Any, given: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits = network.logits(network.run(given[:, :-1]).states)
    return logits.log_softmax(-1).gather(-1, given[:, 1:, None]).squeeze(-1) * mask


@pytest.mark.parametrize("flags", [(), MODERN])
def test_gradients_of_log_probabilities_are_those_of_whole_logits(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modern blocks cap their logits, and pad the vocabulary."""
    monkeypatch.setattr(loss_module, "SLICE_ELEMENTS", 5 * 60)
    network, given = tiny_model("base", *flags, "--vocab_size", "60"), pairs()
    sequences, mask = given["chosen"] % 60, given["chosen_mask"]
    weights = torch.linspace(-1, 1, mask.numel()).view_as(mask)
    parameters = list(network.parameters())
    gradients = []
    for logps in (completion_logps(network, sequences, mask), dense(network, sequences, mask)):
        gradients.append(torch.autograd.grad((logps * weights).sum(), parameters, allow_unused=True))
    for one, two in zip(*gradients, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, atol=1e-6, rtol=1e-4)


def test_no_gradient_of_a_frozen_head_is_computed() -> None:
    network, given = tiny_model("base", *MODERN), pairs()
    head, flops = network.head[1], []
    for is_trained in (False, True):
        head.requires_grad_(is_trained)
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
            completion_logps(network, given["chosen"], given["chosen_mask"]).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[1] - flops[0] == 2 * given["chosen_mask"].numel() * head.numel()


def test_log_probabilities_in_half_precision_come_close() -> None:
    network, given = tiny_model("base"), pairs()
    exact = completion_logps(network, given["chosen"], given["chosen_mask"])
    with torch.autocast("cpu", torch.bfloat16):
        logps = completion_logps(network, given["chosen"], given["chosen_mask"])
    logps.sum().backward()
    assert torch.allclose(logps, exact, rtol=3e-2)


def test_logits_of_all_tokens_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "SLICE_ELEMENTS", 8 * 4096)
    flags = ("--vocab_size", "4096", "--n_embd", "4", "--n_head", "1", "--n_layer", "1")
    with Largest() as watch:
        base = (*flags, "--n_layer_begin", "0", "--n_layer_end", "0")
        policy_and_reference("base", *base)(pairs()).mean.backward()
    assert watch.elements <= 8 * 4096


# preferences


@pytest.mark.parametrize("model", CAN)
def test_a_policy_that_is_its_reference_has_no_margin(model: str) -> None:
    """Also where each forward pass in training draws how many tokens go on."""
    network = tiny_model(model)
    objective = Dpo(network, copy.deepcopy(network)).train()
    torch.manual_seed(0)
    logps = objective.logps(pairs())
    assert torch.allclose(logps.policy_chosen, logps.ref_chosen, rtol=1e-5)
    assert torch.allclose(logps.policy_rejected, logps.ref_rejected, rtol=1e-5)


def test_the_shares_of_tokens_that_go_on_are_drawn_anew_each_time() -> None:
    objective, given = policy_and_reference("adm").train(), pairs()
    assert len({objective.logps(given).ref_chosen[0].item() for _ in range(6)}) > 1
    assert objective.network.settings.eval_length_factor is None


@pytest.mark.parametrize("routing", ["capacity", "threshold"])
def test_the_reference_is_evaluated_as_the_policy_is(routing: str) -> None:
    flags = ("--eval_length_factor", "0.5", "0.25", "--routing", routing)
    network = tiny_model("adm", *flags)
    objective = Dpo(network, tiny_model("adm")).eval()  # of the same weights
    logps = objective.logps(pairs())
    assert torch.equal(logps.policy_chosen, logps.ref_chosen)


def test_prompt_and_padding_do_not_count() -> None:
    objective, given = policy_and_reference("base").eval(), pairs()
    padded = copy.deepcopy(given)
    for side in ("chosen", "rejected"):
        padded[side][:, 12:] = 7
    masked = copy.deepcopy(given)
    masked["chosen_mask"][:, :4] = True
    assert objective(padded).mean == objective(given).mean != objective(masked).mean


def test_the_reference_stays_as_it_is() -> None:
    objective = policy_and_reference("lncot")
    reference = objective.reference
    reference.transformer["drop"].p = 0.5  # which only training would have
    before = [parameter.clone() for parameter in reference.parameters()]
    fit(objective, Pairs(), steps=2, batch_size=2, device="cpu")
    assert objective.network.training and not any(part.training for part in reference.modules())
    assert all(torch.equal(one, two) for one, two in zip(before, reference.parameters(), strict=True))


def test_a_policy_cannot_be_its_own_reference() -> None:
    network = tiny_model("base")
    with pytest.raises(ValueError, match="a copy of it"):
        Dpo(network, network)


class Pairs(PlainSource):
    def samples(self, step: int, first: int, count: int) -> Batch:
        assert count == 2
        return pairs(seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", CAN)
def test_every_model_with_one_state_of_each_token_learns_a_preference(model: str) -> None:
    objective = policy_and_reference(model, "--training_length_factor", "1", "1")
    fit(objective, Pairs(), steps=12, lr=1e-2, batch_size=2, device="cpu", seed=1)
    measured = measure_pairs(objective, Fixed(), tiny_args("base", dtype="float32"), CPU, 2, 0)
    assert measured is not None and measured[:, 1].min() > 0.2


class Fixed:
    def __len__(self) -> int:
        return 2

    def batch(self, numbers: Any) -> Batch:
        return pairs(seed=0)


def test_equal_rewards_of_a_group_have_no_advantage() -> None:
    rewards, groups = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0]), torch.tensor([4, 4, 4, 2, 2])
    assert group_advantages(rewards, groups).tolist() == [0, 0, 0, 1, -1]


def test_a_completion_without_tokens_adds_nothing() -> None:
    logps = torch.zeros(2, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    grpo_loss(logps, logps.detach(), logps.detach(), torch.tensor([1.0, 1.0]), mask).loss.backward()
    assert logps.grad is not None and logps.grad.isfinite().all() and not logps.grad[1].any()


# on prepared examples


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums(tmp_path_factory.mktemp("sums"))


def test_uneven_answers_are_one_large_batch_however_they_are_cut(datasets: Path) -> None:
    source = SftSource(open_examples(datasets / "chat", "chat", 256), 16, data_seed=1)
    assert len(set(source.set.counts.tolist())) > 1
    weights, losses = [], []
    for size, turns in ((8, 1), (2, 4)):
        network = tiny_model("base", "--vocab_size", "256")
        settings = {"steps": 2, "batch_size": size, "acc_steps": turns, "opt": "sgd", "device": "cpu"}
        losses.append([row["loss"] for row in fit(Sft(network), source, **settings).rows])
        weights.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(*weights, atol=1e-6)


def test_the_loss_of_answers_is_that_of_their_tokens_alone(datasets: Path) -> None:
    source = SftSource(open_examples(datasets / "chat", "chat", 256), 16, data_seed=1)
    network, batch = tiny_model("base", "--vocab_size", "256"), source.samples(0, 0, 4)
    losses = next_token(network, network.run(batch["inputs"]), batch["targets"]).token_losses
    assert losses is not None
    expected = losses[batch["counted"]].mean().item()
    assert Sft(network)(batch).mean.item() == pytest.approx(expected, rel=1e-5)
    found = evaluate(network, Answers(source.set), 7, CPU, autocaster("float32", CPU.device))
    assert found is not None and found["n_tokens"] == source.set.counts.sum()


def test_pairs_are_measured_alike_in_any_batches(datasets: Path) -> None:
    splits = open_examples(datasets / "pairs", "pairs", 256)
    objective = policy_and_reference("base", "--vocab_size", "256")
    found = []
    args = tiny_args("base", dtype="float32")
    for size in (3, 12):
        found.append(measure_pairs(objective, PairSet(splits.val, 16, splits.stop), args, CPU, size, 0))
    assert found[0].shape == (len(splits.val), len(PREFERENCES))
    assert torch.allclose(*found, atol=1e-5)


def test_a_run_goes_on_evaluating_the_pairs_that_it_began_with(datasets: Path, tmp_path: Path) -> None:
    """Also where its steps are cut otherwise."""
    splits = open_examples(datasets / "pairs", "pairs", 256)
    objective, held_out = (
        policy_and_reference("base", "--vocab_size", "256"),
        PairSet(splits.val, 16, splits.stop),
    )
    args = tiny_args("base", dtype="float32", batch_size=4, eval_batches=1)
    evaluation = HeldOutPairs(args, CPU, objective, held_out, tmp_path, {})
    evaluation.take_up({"batch_size": 2, "batches": 3}, vars(args))
    found = evaluation.run(False, lambda: False, lambda: None)
    assert found is not None and found.values["n_pairs"] == 6


@pytest.mark.slow
def test_examples_of_the_page_train(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "tuning-preferences.md").read_text()
    monkeypatch.chdir(datasets.parent)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
        assert names["rows"][-1]["loss"] < names["rows"][0]["loss"]


# a micro-batch in which nothing counts


class Nothing(PlainSource):
    def samples(self, step: int, first: int, count: int) -> Batch:
        sequence = tokens(count, 17, seed=first)
        counted = torch.full((count, 16), first == 0)
        tensors = {"inputs": sequence[:, :-1], "targets": sequence[:, 1:], "counted": counted}
        return Batch(tensors, int(counted.sum()))


def test_a_micro_batch_in_which_nothing_counts_gets_a_line() -> None:
    said = r"step 1: nothing counts in micro-batch 1, samples 2 to 3 of the order, of Nothing"
    with pytest.raises(UserError, match=said):
        fit(Sft(tiny_model("base")), Nothing(), steps=1, batch_size=2, acc_steps=2, device="cpu")


# flags

REFUSED = [
    ("--objective dpo", "--objective dpo needs the checkpoint that it keeps close to"),
    ("--objective dpo --init_from x --beta 0", "--objective dpo learns nothing with --beta 0"),
    ("--objective dpo --init_from x --beta -1", "--beta"),
    ("--objective sft --dataset a=0.5,b=0.5", "one folder (data.tokenize --format chat), not on a mixture"),
    ("--objective sft --packing best_fit", "for which there is no --packing best_fit"),
    ("--objective sft --curriculum length", "for which there is no --curriculum length"),
    ("--objective sft --track val_bpb", "--track val_bpb: nothing measures that"),
    ("--objective dpo --init_from x --track val_pp", "there are: val_loss@pairs, val_margin@pairs"),
    ("--objective sft --model pondernet", "is trained on the exits of all passes"),
    ("--objective sfd", "--objective"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_bad_values_get_a_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, *words.split())
    assert len(lines) == 1 and said in lines[0]


NOTES = [
    ("--objective sft --reference x", "--reference has no effect with --objective sft"),
    ("--beta 0.3", "--beta has no effect with --objective next_token"),
]


@pytest.mark.parametrize(("words", "said"), NOTES)
def test_flags_without_effect_are_named(words: str, said: str) -> None:
    assert said in config.unused_settings(config.parse_args(words.split()))


def test_a_reference_has_no_effect_without_beta() -> None:
    args = config.parse_args([])
    vars(args).update(objective="grpo", beta=0.0, reference="x")
    assert "--reference has no effect: --beta is 0" in config.unused_settings(args)


@pytest.mark.parametrize("objective", ["next_token", "sft", "dpo"])
def test_early_stopping_takes_what_is_measured(objective: str) -> None:
    quantity, _, name = main_quantity(objective).partition("@")
    assert quantity in evaluations_of("stdlib", objective)[name]


def test_the_byte_recipe_tracks_what_is_measured() -> None:
    words = ["bytes", "--dataset", "pairs", "--objective", "dpo", "--init_from", "x"]
    assert config.parse_args(words).track == "val_loss@pairs"


def test_a_margin_of_nothing_costs_ln_2() -> None:
    network = tiny_model("base")
    assert Dpo(network, copy.deepcopy(network))(pairs()).mean.item() == pytest.approx(math.log(2))


def test_sft_of_everything_is_next_token_training() -> None:
    network, sequence = tiny_model("base"), tokens(2, 17)
    tensors = {"inputs": sequence[:, :-1], "targets": sequence[:, 1:]}
    everything = Batch({**tensors, "counted": torch.ones(2, 16, dtype=torch.bool)}, 32)
    assert torch.equal(Sft(network)(everything).mean, NextToken(network)(Batch(tensors, 32)).mean)
