"""What grpo is measured by on the validation prompts: the mean reward and pass@k of sampled completions.

Legend: N prompts, S completions of each.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config.reward_checks import VERIFIERS
from data.batch import Batch
from data.example_sources import PromptSet
from distributed.world import World
from optim.evaluate import EVAL_SEED, summed
from optim.evaluation import HeldOut, Measured
from optim.library import evaluate_pass_at_k
from optim.objectives.grpo import asked_of
from optim.partial import PartialSums
from optim.rewards import PASSED, Checked
from optim.rollouts import EVALUATION, Rollouts, draw_keys
from optim.tracked import PROMPTS, rewards_of

TRIED = 1000  # prompts of a split, of a built-in reward


class HeldOutPrompts(HeldOut):
    """Mean reward and pass@k of --eval_samples completions, as `measure_rewards` has them: of some prompts
    during training, of all at the end, always by the same draws.
    """

    counts = ("ended", "length", "n_prompts", "n_samples")

    def __init__(
        self,
        args: Namespace,
        world: World,
        network: Any,
        rollouts: Rollouts,
        prompts: PromptSet,
        folder: Path,
        identity: Mapping[str, Any],
    ) -> None:
        """As HeldOut."""
        super().__init__(args, world, network, prompts, folder, identity, PROMPTS)
        self.prompts, self.rollouts, self.quantities = prompts, rollouts, rewards_of(args.pass_k)

    def run(
        self, whole: bool, should_stop: Callable[[], bool], advanced: Callable[[], object]
    ) -> Measured | None:
        kept = self.partial_sums(self.network, advanced)
        batches = 0 if whole else self.plan.batches
        found = measure_rewards(
            self.network,
            self.rollouts,
            self.prompts,
            self.args,
            self.world,
            self.plan.batch_size,
            batches,
            should_stop,
            kept=kept,
        )
        if found is None:
            return None
        values = means_of(*found, self.args.pass_k)
        return Measured(values, in_words(values), kept.remove)


def measure_rewards(
    network: Any,
    rollouts: Rollouts,
    prompts: PromptSet,
    args: Namespace,
    world: World,
    batch_size: int,
    read: NDArray[np.int64] | int,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda done: None,
    kept: PartialSums | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Of each batch how many completions ended and their tokens, (batches, 2); of each prompt that is read
    the rewards of its completions, (prompts, S); float64. read and the rest: as optim.evaluate.summed.
    """
    samples = args.eval_samples

    def measure(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        numbers = batch["numbers"].tolist()
        asked = [asked_of(prompts.prompt(number)) for number in numbers]
        keys = draw_keys(EVAL_SEED, EVALUATION, numbers, samples)
        found = rollouts.of(network, world.device, asked, keys)
        sums = torch.tensor([float(found.ended.sum()), float(found.lengths.sum())], dtype=torch.float64)
        return sums, found.rewards.view(-1, samples)

    return summed(
        network,
        measure,
        (2, samples),
        prompts,
        batch_size,
        world,
        read,
        should_stop,
        progress,
        kept,
    )


def try_reward(reward: Checked, *sets: PromptSet) -> None:
    """Raises UserError where a reward fails on an empty completion of the first prompts of a set: of one,
    where it is a function of the user's own, which may take its time.
    """
    tried = TRIED if reward.name in VERIFIERS else 1
    for prompts in sets:
        for number in prompts.numbers[:tried].tolist():
            prompt = prompts.prompt(number)
            reward(prompt.text, "", prompt.answer)


def means_of(sums: Tensor, rewards: Tensor, pass_k: Sequence[int] | None) -> dict[str, Any]:
    """Values of a metrics row, of what `measure_rewards` has found."""
    ended, tokens = (sums.sum(0) / rewards.numel()).tolist()
    return {
        "reward": float(rewards.mean()),
        **evaluate_pass_at_k((rewards >= PASSED).tolist(), pass_k or [1]),
        "ended": ended,
        "length": tokens,
        "n_prompts": len(rewards),
        "n_samples": rewards.shape[1],
    }


def in_words(values: Mapping[str, Any]) -> str:
    """A line for people."""
    shown = [
        f"{name} {value:.4f}" for name, value in values.items() if name not in ("n_prompts", "n_samples")
    ]
    return "  ".join(shown) + f"  ({values['n_prompts']} prompts, {values['n_samples']} completions of each)"
