"""What a training of coalescence times minimises: the cross-entropy of each window's token."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from data.batch import Batch
from models.coalescence.network import CoalescenceTransformer
from models.loss import linear_cross_entropy
from optim.objectives import Loss


class NextTime(nn.Module):
    """In nats per window, given the histograms of all windows and the true tokens of those before it."""

    may_leave_unused = False

    def __init__(self, network: CoalescenceTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Loss:
        """batch: `x`, as CoalescenceTransformer.encode takes it; `tokens` (B, 1 + W)."""
        tokens = batch["tokens"]
        states = self.network.run(batch["x"], tokens[:, :-1]).states
        norm, weight = self.network.head
        targets = tokens[:, 1:].flatten()
        total, _, _ = linear_cross_entropy(norm(states).flatten(0, 1), weight, targets)
        return Loss(cast(Tensor, total) / targets.numel(), batch.count)

    def flops_per_token(self, length: int | None = None) -> float:
        """As models.network.Network."""
        return self.network.flops_per_token(length)

    def describe(self) -> list[str]:
        """As NextToken has it."""
        return []
