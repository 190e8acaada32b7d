"""Group relative policy optimisation: a network learns from rewards of its own completions (Shao et al.
2024).

    source = PromptSource(open_examples(folder), 64, completion_tokens=8, data_seed=0)
    fit(Grpo(network, source, reward="exact"), source, steps=200)

A sample is a prompt. Its completions, the group, are drawn within the forward pass of the micro-batch that
has it (optim/rollouts.py), and their rewards compared with each other. There is one update for each rollout,
so the policy that is updated is the one that sampled. Every draw is a pure function of the data seed, the
prompt's number in the run, the completion's number in its group and the place of the token.

Legend: N prompts, G completions of each, C most tokens of one, P longest prompt, T = P + C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.example_sources import PromptSource
from data.examples import ExampleSplits, Prompt, PromptExamples
from data.tokenizer import open_tokenizer
from data.vocabulary import described
from errors import UserError
from optim.hooks import Run
from optim.monitors import Monitor
from optim.objectives import Loss
from optim.objectives.preferences import group_advantages, grpo_loss, routed_alike, scored
from optim.rewards import Reward, reward_of
from optim.rollouts import TRAINING, Asked, Completions, Rollouts, Sampling, draw_keys

REFERENCE = "reference"
# what a row of metrics.jsonl says of the rollouts of a step: means over completions; k3 and clipped over
# their tokens; no_signal over groups: all rewards were the same
MEASURES = ("reward", "no_signal", "ended", "length", "k3", "clipped")


@dataclass(frozen=True)
class GrpoSettings:
    """beta: weight of k3, the divergence from the reference in nats; 0: there is no reference."""

    group_size: int = 8
    beta: float = 0.1
    clip: float = 0.2


class _Tempered:
    """A network whose logits are divided by a temperature."""

    def __init__(self, network: Any, temperature: float) -> None:
        self.network, self.temperature = network, temperature

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    @property
    def head(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        norm, weight = self.network.head
        return lambda states: norm(states) / self.temperature, weight

    @property
    def softcap(self) -> float | None:
        cap = getattr(self.network, "softcap", None)
        return None if cap is None else cap / self.temperature


class Grpo(nn.Module):
    """`grpo_loss` of a network on completions of its own, and what the network adds to it.

    frozen: by name, which file each part is that is not trained (optim.initial.describe).
    """

    def __init__(
        self,
        network: Any,
        prompts: PromptSource,
        reward: str | Reward,
        reference: nn.Module | None = None,
        settings: GrpoSettings | None = None,
        sampling: Sampling | None = None,
        file: Mapping[str, str] | None = None,
    ) -> None:
        """network: a models.transformer.Transformer. reward: as --reward, or a function. reference: None
        takes the network as it is now. sampling: None takes that of the prompts (`sampling_of`). file: of the
        reference, as optim.initial.describe has it: a resume wants the same one. Raises UserError.
        """
        super().__init__()
        self.network, self.prompts = network, prompts
        self.settings = settings or GrpoSettings()
        self.reference: nn.Module | None = None
        if self.settings.beta:
            reference = deepcopy(network) if reference is None else reference
            self.reference = reference.requires_grad_(False).eval()
        if sampling is None:
            sampling = sampling_of(prompts.splits, prompts.set.sequence_length - prompts.set.width)
        self.rollouts = Rollouts(sampling, reward_of(reward))
        self.may_leave_unused: bool = network.may_leave_unused
        self.frozen = {} if file is None else {REFERENCE: file}
        self._forget()

    def train(self, mode: bool = True) -> Grpo:
        """The reference stays in evaluation mode."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def forward(self, batch: Batch) -> Loss:
        """Raises OwnError where a reward fails, UserError for a network without one state of each token."""
        settings, device = self.settings, batch["prompts"].device
        asked = [asked_of(self.prompts.prompt(number)) for number in batch["numbers"].tolist()]
        samples = batch["samples"].tolist()
        keys = draw_keys(self.prompts.data_seed, TRAINING, samples, settings.group_size)
        found = self.rollouts.of(self.network, device, asked, keys)
        width = batch["prompts"].shape[1] + self.rollouts.sampling.most
        tokens, mask = sequences(asked, found, width)
        groups = torch.arange(batch.count).repeat_interleave(settings.group_size)
        advantages = group_advantages(found.rewards, groups)
        logps, ref_logps, penalty = self._scored(tokens.to(device), mask.to(device))
        ratios = logps, logps.detach(), ref_logps, advantages.to(device), mask.to(device)
        loss = grpo_loss(*ratios, settings.beta, settings.clip)
        self._note(found, advantages, loss.k3, loss.clipped)
        return Loss(loss.loss + penalty, batch.count)

    def _scored(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None, Tensor | float]:
        """Log-probabilities under the policy and the reference, (N G, T), at the temperature of sampling, and
        what the network adds to its loss.
        """
        policy, reference = self._tempered(self.network), self.reference
        ref_logps = None
        with routed_alike(self.network, reference or self.network):
            if reference is not None:
                with torch.no_grad():
                    ref_logps = scored(self._tempered(reference), tokens, mask).logps
            logps, penalty = scored(policy, tokens, mask)
        return logps, ref_logps, penalty

    def _tempered(self, network: Any) -> Any:
        temperature = self.rollouts.sampling.temperature
        return network if temperature == 1 else _Tempered(network, temperature)

    def _note(self, found: Completions, advantages: Tensor, k3: Tensor, clipped: Tensor) -> None:
        """Keep the MEASURES of a micro-batch."""
        same = (advantages.view(-1, self.settings.group_size) == 0).all(1).double().mean()
        of_rollouts = found.rewards.mean(), same, found.ended.double().mean(), found.lengths.double().mean()
        self._sums += torch.stack([*of_rollouts, k3.double().cpu(), clipped.double().cpu()])
        self._micro_batches += 1

    def taken(self) -> Tensor:
        """The means of the MEASURES of the micro-batches since the last call, float64; they are forgotten."""
        means = self._sums / self._micro_batches
        self._forget()
        return means

    def _forget(self) -> None:
        self._sums, self._micro_batches = torch.zeros(len(MEASURES), dtype=torch.float64), 0

    def describe(self) -> list[str]:
        """As NextToken.describe."""
        settings, sampling = self.settings, self.rollouts.sampling
        lines = [
            f"objective: rewards of own completions (grpo), {settings.group_size} of each prompt of at most"
            f" {sampling.most} tokens, reward {self.rollouts.reward.name}, beta {settings.beta:g}",
        ]
        if self.reference is None:
            lines.append("reference: none, as beta is 0")
        if self.network.settings.variant.routes:
            lines.append(
                "note: completions are generated by threshold routing, which is causal, and scored by the"
                " capacities of training"
            )
        return lines + [f"{name}: {file['file']}" for name, file in self.frozen.items()]

    def flops_per_token(self, length: int | None = None) -> float:
        """Of a token of prompt and completion, as models.network.Network: those of the network in training
        and in generation, and a forward pass of the reference.
        """
        flops = self.network.flops_per_token(length) * 4 / 3
        reference: Any = self.reference
        if reference is not None:
            flops += reference.flops_per_token(length) / 3
        return float(flops)


def sampling_of(splits: ExampleSplits[PromptExamples], most: int) -> Sampling:
    """Of completions of at most so many tokens, with the tokenizer and the stop token of their prompts.

    Raises UserError where the tokenizer is not known.
    """
    tokenizer = open_tokenizer(described(splits.meta))
    if tokenizer is None:
        raise UserError(f"{splits.folder} does not say by which tokenizer its tokens become text")
    return Sampling(tokenizer, splits.stop, most)


def asked_of(prompt: Prompt) -> Asked:
    """A prompt as rollouts take it."""
    return Asked(prompt.tokens.tolist(), prompt.text, prompt.answer)


def sequences(asked: Sequence[Asked], found: Completions, width: int) -> tuple[Tensor, Tensor]:
    """Prompts with their completions, (N G, width + 1) int64, 0 behind them, and which of the width targets
    are of a completion, (N G, width) bool.
    """
    count, most = found.tokens.shape
    group_size = count // len(asked)
    tokens = torch.zeros(count, width + 1, dtype=torch.int64)
    begins = torch.tensor([len(prompt.tokens) for prompt in asked]).repeat_interleave(group_size)
    for row in range(count):
        prompt = asked[row // group_size].tokens
        tokens[row, : len(prompt)] = torch.tensor(prompt)
        tokens[row, len(prompt) : len(prompt) + most] = found.tokens[row]
    places = torch.arange(1, width + 1)  # of the targets
    ends = begins + found.lengths
    return tokens, (places >= begins[:, None]) & (places < ends[:, None])


class RolloutRows(Monitor):
    """A row of metrics.jsonl, of the kind rollouts, with the MEASURES of every log_freq-th step over all
    processes. Long rollouts are progress to the watchdog.
    """

    kind = "rollouts"

    def __init__(self, objective: Grpo, log_freq: int) -> None:
        super().__init__()
        self.objective, self.log_freq = objective, log_freq

    def joined(self, run: Run) -> None:
        """As Hook.joined."""
        super().joined(run)
        self.objective.rollouts.beat = run.watchdog.beat

    def stepped(self, step: int, loss: float) -> None:
        """As Hook.stepped."""
        assert self.run is not None, "joined() has been called"
        means = self.objective.taken()
        if not self.log_freq or step % self.log_freq:
            return
        world = self.run.world
        values = (world.sum(means) / world.size).tolist()
        self.metrics = dict(zip(MEASURES, values, strict=True))
        words = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        row = {"kind": self.kind, "step": step, **self.metrics}
        self.run.reporter.row(row, [f"rollouts of step {step}: {words}"])
