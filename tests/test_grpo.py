"""The objective grpo: its loss and gradient against plain formulas, exact resume, its evaluation."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from data.batch import Batch
from data.example_sources import PromptSet, PromptSource
from data.examples import ExampleSplits, open_examples
from distributed.world import World
from errors import UserError
from models.variants import VARIANTS
from optim.early_stopping import EarlyStopping
from optim.fit import fit
from optim.hooks import Hook, Stop
from optim.objectives.grpo import MEASURES, Grpo, GrpoSettings, RolloutRows, sequences
from optim.reward_evaluation import HeldOutPrompts, means_of, measure_rewards
from optim.rollouts import TRAINING, Asked, Completions, draw_keys
from optim.selftest import differing, leaves
from optim.tracked import Tracked, full_name, rewards_of
from tests.helpers import tiny_args, tiny_model
from tests.programs import ROOT
from tests.tuned import sums

CPU = World(torch.device("cpu"))
BYTES = ("--vocab_size", "256")
CAN = [name for name, variant in VARIANTS.items() if not variant.exits_each_pass]
DIGIT = r"regex:^[^a-z]*$"  # which some completions of random weights pass
SHORT: dict[str, Any] = {"batch_size": 3, "device": "cpu", "lr": 1e-2}


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> ExampleSplits[Any]:
    return open_examples(sums(tmp_path_factory.mktemp("sums")) / "prompts")


def policy(splits: ExampleSplits[Any], model: str = "base", beta: float = 0.1, **more: Any) -> Grpo:
    source = PromptSource(splits, 16, 5, data_seed=7)
    settings = GrpoSettings(group_size=4, beta=beta)
    return Grpo(tiny_model(model, *BYTES), source, DIGIT, settings=settings, **more)


def batch_of(objective: Grpo, count: int = 3) -> Batch:
    return objective.prompts.samples(0, 0, count)


def rollouts_of(objective: Grpo, batch: Batch) -> tuple[list[Asked], Completions]:
    prompts = [objective.prompts.prompt(number) for number in batch["numbers"].tolist()]
    asked = [Asked(prompt.tokens.tolist(), prompt.text, prompt.answer) for prompt in prompts]
    keys = draw_keys(7, TRAINING, batch["samples"].tolist(), 4)
    return asked, objective.rollouts.of(objective.network, CPU.device, asked, keys)


def plain_loss(objective: Grpo, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """Completion by completion, of whole logits; its gradient is the policy gradient."""
    asked, found = rollouts_of(objective, batch)
    rewards = found.rewards.view(-1, 4)
    spread = rewards.std(1, correction=0, keepdim=True)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / spread.clamp(min=1e-8)).flatten().tolist()
    total = torch.zeros(())
    for row, advantage in enumerate(advantages):
        prompt, length = list(asked[row // 4].tokens), int(found.lengths[row])
        new = found.tokens[row, :length]
        tokens = torch.tensor([prompt + new.tolist()])
        logps = []
        for network in (objective.network, objective.reference):
            if network is not None:
                logits = network(tokens[:, :-1], get_logits=True)["logits"][0, len(prompt) - 1 :]
                logps.append((logits / temperature).log_softmax(-1).gather(1, new[:, None]).squeeze(1))
        gain = (logps[0] - logps[0].detach()).exp() * advantage
        if objective.settings.beta:
            apart = logps[1].detach() - logps[0]
            gain = gain - objective.settings.beta * (apart.exp() - apart - 1)
        total = total - gain.mean() / len(advantages)
    return total


def gradients(objective: Grpo, loss: torch.Tensor) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, list(objective.network.parameters()), allow_unused=True)
    return [each for each in found if each is not None]


@pytest.mark.parametrize(("beta", "temperature"), [(0.1, 1.0), (0.0, 1.0), (0.5, 1.7)])
def test_loss_and_gradient_are_those_of_the_formula(
    splits: ExampleSplits[Any], beta: float, temperature: float
) -> None:
    objective = policy(splits, beta=beta)
    if objective.reference is not None:
        with torch.no_grad():
            for parameter in objective.reference.parameters():
                parameter.mul_(0.9)
    sampling = objective.rollouts.sampling
    objective.rollouts.sampling = sampling.__class__(**{**vars(sampling), "temperature": temperature})
    batch = batch_of(objective)
    loss, plain = objective(batch).mean, plain_loss(objective, batch, temperature)
    assert loss.item() == pytest.approx(plain.item(), abs=2e-6)
    pairs = zip(gradients(objective, loss), gradients(objective, plain), strict=True)
    assert max(float((one - two).abs().max()) for one, two in pairs) < 1e-5
    assert any(bool(each.abs().max() > 1e-3) for each in gradients(objective, objective(batch).mean))


def test_a_softcap_is_tempered_too(splits: ExampleSplits[Any]) -> None:
    flags = (*BYTES, "--block", "modern", "--rope_dtype", "bfloat16")
    network = tiny_model("base", *flags)
    source = PromptSource(splits, 16, 5, data_seed=7)
    objective = Grpo(network, source, DIGIT, settings=GrpoSettings(4, 0.0))
    sampling = objective.rollouts.sampling
    objective.rollouts.sampling = sampling.__class__(**{**vars(sampling), "temperature": 0.6})
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
    logps, _, _ = objective._scored(tokens, torch.ones(2, 11, dtype=torch.bool))
    logits = network.logits(network.run(tokens[:, :-1]).states)
    expected = (logits / 0.6).log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    assert torch.allclose(logps, expected, atol=1e-5)


def test_targets_that_count_are_those_of_completions_up_to_their_end() -> None:
    tokens = torch.tensor([[5, 6, 0], [7, 8, 9]])
    found = Completions(tokens, torch.tensor([2, 3]), torch.tensor([True, False]), torch.zeros(2))
    rows, mask = sequences([Asked([1, 2, 3, 4], "a"), Asked([1], "b")], found, 8)
    assert rows.tolist() == [[1, 2, 3, 4, 5, 6, 0, 0, 0], [1, 7, 8, 9, 0, 0, 0, 0, 0]]
    assert [row[1:][one].tolist() for row, one in zip(rows, mask, strict=True)] == [[5, 6], [7, 8, 9]]


def test_the_reference_is_what_the_network_was_and_stays_so(splits: ExampleSplits[Any]) -> None:
    objective = policy(splits)
    before = copy.deepcopy(objective.network.state_dict())
    fit(objective, objective.prompts, steps=2, **SHORT)
    assert objective.reference is not None
    kept = objective.reference.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.items())
    assert any(not torch.equal(objective.network.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("model", CAN)
def test_a_policy_that_is_its_reference_has_no_divergence(splits: ExampleSplits[Any], model: str) -> None:
    objective = policy(splits, model).train()
    objective(batch_of(objective))
    measured = dict(zip(MEASURES, objective.taken().tolist(), strict=True))
    assert measured["k3"] == pytest.approx(0, abs=1e-6) and measured["clipped"] == 0
    assert 0 < measured["reward"] < 1 and 1 <= measured["length"] <= 5


def test_rollouts_do_not_take_the_gradient_of_half_precision(splits: ExampleSplits[Any]) -> None:
    objective = policy(splits, beta=0.0)
    batch = batch_of(objective)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch).mean
    found = torch.autograd.grad(loss, list(objective.network.parameters()), allow_unused=True)
    names = [name for name, _ in objective.network.named_parameters()]
    assert [name for name, each in zip(names, found, strict=True) if each is None] == []


class StopAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, loss: float) -> Stop | None:
        return Stop("pause", "enough") if step == self.step else None


def trained(splits: ExampleSplits[Any], folder: Path, model: str, *stops: int) -> tuple[Any, list[Any]]:
    """Weights and rows after 6 steps, with pauses after some of them."""
    for stop in (*stops, 0):
        objective = policy(splits, model)
        hooks = [RolloutRows(objective, 1), StopAt(stop)]
        fitted = fit(objective, objective.prompts, steps=6, folder=folder, hooks=hooks, **SHORT)
    rows = [{**row, "time": None} for row in fitted.rows]
    return leaves(objective.network.state_dict()), rows


@pytest.mark.parametrize("model", ["base", "adm"])
def test_a_stopped_training_ends_with_the_same_bits(
    splits: ExampleSplits[Any], tmp_path: Path, model: str
) -> None:
    unbroken, rows = trained(splits, tmp_path / "unbroken", model)
    stopped, others = trained(splits, tmp_path / "stopped", model, 2, 5)
    assert differing(unbroken, stopped) == [] and rows == others
    assert [row["step"] for row in rows if row["kind"] == "rollouts"] == list(range(1, 7))


def test_training_raises_the_reward(splits: ExampleSplits[Any]) -> None:
    source = PromptSource(splits, 16, 5, data_seed=7)
    settings = GrpoSettings(group_size=8, beta=0.0)
    objective = Grpo(tiny_model("base", *BYTES), source, "regex:[0-9]", settings=settings)
    rows = fit(objective, source, steps=15, hooks=[RolloutRows(objective, 1)], **SHORT).rows
    rewards = [row["reward"] for row in rows if row["kind"] == "rollouts"]
    assert sum(rewards[:3]) / 3 < 0.4 and sum(rewards[-3:]) / 3 > 0.8


# evaluation


def held_out(splits: ExampleSplits[Any], **changes: Any) -> tuple[Any, PromptSet, Any]:
    args = tiny_args("base", *BYTES, eval_samples=4, pass_k=[1, 2, 4], batch_size=5, **changes)
    return policy(splits), PromptSet(splits.val, 16, splits.stop, 5), args


def test_mean_reward_and_pass_at_k(splits: ExampleSplits[Any]) -> None:
    objective, prompts, args = held_out(splits)
    found = measure_rewards(objective.network, objective.rollouts, prompts, args, CPU, 5, 0)
    assert found is not None
    means = means_of(*found, args.pass_k)
    assert means["n_prompts"] == len(prompts) and means["n_samples"] == 4
    assert means["reward"] == pytest.approx(means["pass@1"]) == pytest.approx(float(found[1].mean()))
    assert means["pass@4"] == pytest.approx(float((found[1].amax(1) >= 1).double().mean()))
    assert means["pass@1"] < means["pass@2"] < means["pass@4"]


def test_evaluation_draws_the_same_whenever_it_is_asked(splits: ExampleSplits[Any], tmp_path: Path) -> None:
    objective, prompts, args = held_out(splits, eval_batches=1)
    evaluation = HeldOutPrompts(args, CPU, objective.network, objective.rollouts, prompts, tmp_path, {})
    runs = [evaluation.run(whole, lambda: False, lambda: None) for whole in (False, False, True)]
    values = [run.values for run in runs if run is not None]
    assert values[0] == values[1] and values[0]["n_prompts"] == 5 and values[2]["n_prompts"] == len(prompts)


def test_an_evaluation_that_is_cut_short_goes_on(splits: ExampleSplits[Any], tmp_path: Path) -> None:
    objective, prompts, args = held_out(splits)
    evaluation = HeldOutPrompts(args, CPU, objective.network, objective.rollouts, prompts, tmp_path, {})
    assert evaluation.run(True, lambda: True, lambda: None) is None
    assert len(list(tmp_path.iterdir())) == 1
    resumed, whole = (evaluation.run(True, lambda: False, lambda: None) for _ in range(2))
    assert resumed is not None and whole is not None and resumed.values == whole.values


def test_tracking_finds_the_one_evaluation_that_measures_it() -> None:
    known = {"prompts": rewards_of([1, 4])}
    assert full_name("pass@4", known) == "pass@4@prompts"
    tracked = Tracked("pass@4", known, 10)
    assert tracked.improves("prompts", {"pass@4": 0.5}, 10)
    assert not tracked.improves("prompts", {"pass@4": 0.4}, 20)
    with pytest.raises(UserError, match=r"there are: reward@prompts, pass@1@prompts"):
        Tracked("pass@8", {"prompts": rewards_of(None)}, 10)


def test_early_stopping_by_a_reward(splits: ExampleSplits[Any], tmp_path: Path) -> None:
    objective, prompts, args = held_out(splits, eval_batches=1)
    evaluation = HeldOutPrompts(args, CPU, objective.network, objective.rollouts, prompts, tmp_path, {})
    hooks = [EarlyStopping(1, 2.0, "reward")]
    fitted = fit(
        objective, objective.prompts, steps=9, evaluations=[evaluation], eval_freq=1, hooks=hooks, **SHORT
    )
    assert fitted.outcome.step == 2 and fitted.outcome.is_done


def test_flags_of_the_evaluation_reach_every_recipe() -> None:
    assert config.parse_args(["--eval_samples", "8", "--pass_k", "1", "8"]).pass_k == [1, 8]


def test_the_example_of_the_page_trains(splits: ExampleSplits[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "tuning-grpo.md").read_text()
    monkeypatch.chdir(splits.folder.parent.parent)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert {row["kind"] for row in names["rows"]} == {"train", "rollouts"}
    assert names["reward"]("a", "b", "b") == 1
