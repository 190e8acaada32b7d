"""What fine-tuning is measured by on the validation examples: answers as text is, pairs by their margins.

Legend: N pairs.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.batch import Batch, EvalSet
from distributed.world import World
from optim.evaluate import summed
from optim.evaluation import HeldOut, Measured
from optim.objectives.dpo import Dpo, PairLogps
from optim.objectives.preferences import margins
from optim.objectives.sft import Answers
from optim.partial import PartialSums
from optim.setup import autocaster
from optim.tracked import ANSWERS, PAIRS, PREFERENCES


class HeldOutAnswers(HeldOut):
    """Loss, perplexity and accuracy of the tokens of answers."""

    def __init__(
        self,
        args: Namespace,
        world: World,
        network: Any,
        examples: EvalSet,
        folder: Path,
        identity: Mapping[str, Any],
    ) -> None:
        """As HeldOut."""
        super().__init__(args, world, network, Answers(examples), folder, identity)
        self.quantities = ANSWERS


class HeldOutPairs(HeldOut):
    """Loss, margin and accuracy of pairs, as `measure_pairs` has them."""

    counts = ("n_pairs",)

    def __init__(
        self,
        args: Namespace,
        world: World,
        objective: Dpo,
        pairs: EvalSet,
        folder: Path,
        identity: Mapping[str, Any],
    ) -> None:
        """As HeldOut."""
        super().__init__(args, world, objective.network, pairs, folder, identity, PAIRS)
        self.objective, self.quantities = objective, PREFERENCES

    def run(
        self, whole: bool, should_stop: Callable[[], bool], advanced: Callable[[], object]
    ) -> Measured | None:
        kept = self.partial_sums(self.objective, advanced)
        found = measure_pairs(
            self.objective,
            self.windows,
            self.args,
            self.world,
            self.plan.batch_size,
            0 if whole else self.plan.batches,
            should_stop,
            kept=kept,
        )
        return None if found is None else Measured(mean_of_pairs(found), in_words(found), kept.remove)


def measure_pairs(
    objective: Dpo,
    pairs: EvalSet,
    args: Namespace,
    world: World,
    batch_size: int,
    read: NDArray[np.int64] | int,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda done: None,
    kept: PartialSums | None = None,
) -> Tensor | None:
    """Of each pair that is read, (pairs, 4) float64: its loss; its margin; whether that is above 0 (a half
    where it is 0, so that a policy that is its reference has 0.5); and whether the policy alone finds the
    chosen completion likelier. read and the rest: as optim.evaluate.summed.
    """
    autocast = autocaster(args.dtype, world.device)

    def measure(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []), autocast():
            torch.manual_seed(seed)
            logps = objective.logps(batch)
        wide = PairLogps(*(each.double() for each in logps))
        margin = margins(*wide, objective.beta)
        by_policy = (logps.policy_chosen > logps.policy_rejected).double()
        columns = F.softplus(-margin), margin, (margin.sign() + 1) / 2, by_policy
        return torch.zeros(0, dtype=torch.float64), torch.stack(columns, dim=1).cpu()

    found = summed(objective, measure, (0, 4), pairs, batch_size, world, read, should_stop, progress, kept)
    return None if found is None else found[1]


def mean_of_pairs(found: Tensor) -> dict[str, Any]:
    """Values of a metrics row. found: of `measure_pairs`."""
    means = dict(zip(PREFERENCES, found.mean(0).tolist(), strict=True))
    return {**means, "n_pairs": len(found)}


def in_words(found: Tensor) -> str:
    means = mean_of_pairs(found)
    return (
        f"loss {means['val_loss']:.4f}  margin {means['val_margin']:.4f}  accuracy {means['val_acc']:.4f}"
        f"  the chosen one likelier in {means['val_policy_acc']:.4f}"
    )
