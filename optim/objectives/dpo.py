"""Direct preference optimisation: a network learns which of two completions is preferred, without leaving a
frozen reference further than it has to (Rafailov et al. 2023).

    reference = copy.deepcopy(network)
    fit(Dpo(network, reference, beta=0.1), source, steps=200)

A batch has the tensors `chosen` and `rejected`, (N, T + 1) int64 tokens of prompt and completion, and
`chosen_mask` and `rejected_mask`, (N, T) bool: which targets are tokens of the completion.

Legend: N pairs, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.batch import Batch
from optim.objectives import Loss
from optim.objectives.preferences import dpo_loss, routed_alike, scored

REFERENCE = "reference"
SIDES = ("chosen", "rejected")


class PairLogps(NamedTuple):
    """Log-probabilities of whole completions, (N,) each, in nats."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor


class Dpo(nn.Module):
    """`dpo_loss` of a network and its frozen reference, and what the network adds to it.

    frozen: by name, which file each part is that is not trained (optim.initial.describe).
    """

    def __init__(
        self, network: Any, reference: nn.Module, beta: float = 0.1, file: Mapping[str, str] | None = None
    ) -> None:
        """network, reference: as models.network.Network, of one vocabulary. file: of the reference, as
        optim.initial.describe has it: a resume wants the same one.
        """
        super().__init__()
        self.network, self.reference = network, reference.requires_grad_(False).eval()
        self.beta = beta
        self.may_leave_unused: bool = network.may_leave_unused
        self.frozen = {} if file is None else {REFERENCE: file}

    def train(self, mode: bool = True) -> Dpo:
        """The reference stays in evaluation mode."""
        super().train(mode)
        self.reference.eval()
        return self

    def _scored(self, batch: Batch) -> tuple[PairLogps, Tensor | float]:
        """Both sides of the pairs at once, so that a draw of the network's counts for both."""
        tokens = torch.cat([batch[side] for side in SIDES])
        mask = torch.cat([batch[f"{side}_mask"] for side in SIDES])
        with routed_alike(self.network, self.reference):
            with torch.no_grad():
                wanted = scored(self.reference, tokens, mask).logps.sum(1)
            mine, penalty = scored(self.network, tokens, mask)
        return PairLogps(*mine.sum(1).chunk(2), *wanted.chunk(2)), penalty

    def logps(self, batch: Batch) -> PairLogps:
        """Of a batch of pairs."""
        return self._scored(batch)[0]

    def forward(self, batch: Batch) -> Loss:
        """Raises UserError for a network without one state of each token."""
        logps, penalty = self._scored(batch)
        return Loss(dpo_loss(*logps, self.beta) + penalty, batch.count)

    def describe(self) -> list[str]:
        """As NextToken.describe."""
        lines = [f"objective: preferences (dpo), beta {self.beta:g}"]
        return lines + [f"{name}: {file['file']}" for name, file in self.frozen.items()]

    def flops_per_token(self, length: int | None = None) -> float:
        """Of a token of a pair's two sides, as models.network.Network: those of the network, and a forward
        pass of the reference.
        """
        reference: Any = self.reference
        return float(self.network.flops_per_token(length) + reference.flops_per_token(length) / 3)
