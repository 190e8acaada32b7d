"""How a network of coalescence times does on pairs of tree sequences that it was not trained on, given the
true times before each window. `infer.py` gives it none.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batch import Batch, EvalSet
from data.genomes.targets import FIRST, GRID
from distributed.world import World
from models.coalescence.network import CoalescenceTransformer
from optim.evaluate import perplexity, summed
from optim.evaluation import HeldOut, Measured
from optim.names import OF_TRAINING
from optim.partial import PartialSums, facts_of
from optim.reporting import log
from optim.tracked import HELD_OUT, HIGHER, LOWER

MSE, PEARSON_R = "mse", "pearson_r"
QUANTITIES = {name: HELD_OUT[name] for name in ("val_loss", "val_pp", "val_acc")}
QUANTITIES |= {MSE: LOWER, PEARSON_R: HIGHER}
COLUMNS = 9  # of the sums of a batch: windows, losses, hits, squared errors, and five for the correlation


class HeldOutTimes(HeldOut):
    """Beside the cross-entropy in nats per window: mean squared error and correlation of the expected ln
    time and the true one, over all windows of all pairs.
    """

    def __init__(
        self,
        args: Namespace,
        world: World,
        network: CoalescenceTransformer,
        pairs: EvalSet,
        folder: Path,
        identity: Mapping[str, Any],
    ) -> None:
        super().__init__(args, world, network, pairs, folder, identity)
        self.quantities, self.depth = QUANTITIES, float(network.settings.n_layer)
        self.times = torch.from_numpy(GRID).float().to(world.device)

    def _measure(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        tokens = batch["tokens"]
        targets = tokens[:, 1:]
        with self.autocast():
            logits = self.network(batch["x"], tokens[:, :-1]).float()
        losses = -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1).double()
        expected = (logits[..., FIRST:].softmax(-1) @ self.times).double()
        true = self.times[targets - FIRST].double()
        sums = [
            torch.tensor(float(targets.numel())),
            losses.sum(),
            (logits.argmax(-1) == targets).sum(),
            (expected - true).square().sum(),
            expected.sum(),
            true.sum(),
            expected.square().sum(),
            true.square().sum(),
            (expected * true).sum(),
        ]
        return torch.tensor([float(each) for each in sums], dtype=torch.float64), losses.mean(1, True).cpu()

    def run(
        self, whole: bool, should_stop: Callable[[], bool], advanced: Callable[[], object]
    ) -> Measured | None:
        """As Evaluation.run."""
        plan = self.plan
        facts = facts_of(self.args, plan.batch_size, self.identity, self.world.device)
        kept = PartialSums(self.folder, OF_TRAINING, self.network, facts, log.info, advanced)
        found = summed(
            self.network,
            self._measure,
            (COLUMNS, 1),
            self.windows,
            plan.batch_size,
            self.world,
            0 if whole else plan.batches,
            should_stop,
            kept=kept,
        )
        if found is None:
            return None
        values = {**_means(found[0]), "average_depth": self.depth}
        words = (
            f"loss {values['val_loss']:.4f}  accuracy {values['val_acc']:.4f}  of ln time given those before:"
            f" MSE {values[MSE]:.4f}, r {values[PEARSON_R]:.4f}"
        )
        return Measured(values, words, kept.remove)


def _means(by_batch: Tensor) -> dict[str, Any]:
    """What is reported, of the sums of all batches."""
    n, losses, hits, squares, *moments = by_batch.sum(0).tolist()
    p, t, pp, tt, pt = (moment / n for moment in moments)
    spread = (pp - p * p) * (tt - t * t)
    correlation = 0.0  # of what does not vary, as a network's first guesses
    if spread > 0:
        correlation = (pt - p * t) / math.sqrt(spread)
    return {
        "val_loss": losses / n,
        "val_pp": perplexity(losses / n),
        "val_acc": hits / n,
        MSE: squares / n,
        PEARSON_R: correlation,
        "n_batches": len(by_batch),
        "n_tokens": int(n),
    }
