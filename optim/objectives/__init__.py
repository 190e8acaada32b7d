"""What training minimises: an objective holds the network, and what it needs of its own, and makes a loss
of a batch.

    loss = NextToken(network)(batch)         # under DDP it is the objective that is wrapped
    loss.mean.backward()

An objective is any module of this form: `network`, the part that a checkpoint keeps under the key "model";
`may_leave_unused`, whether a backward pass may skip parameters; and `forward(batch) -> Loss`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from data.batch import Batch


class Loss(NamedTuple):
    """mean: scalar, what is minimised. counted: of how many items (tokens, pairs, windows) it is the mean.

    A tuple, as DDP looks for tensors in what a module returns.
    """

    mean: Tensor
    counted: int


class NextToken(nn.Module):
    """Cross-entropy of the next token in nats, and what the network adds to it (depth penalties)."""

    def __init__(self, network: nn.Module) -> None:
        """network: called with inputs (B, T) and targets (B, T), returns a mapping with a scalar `loss`."""
        super().__init__()
        self.network = network
        settings = getattr(network, "settings", None)
        self.may_leave_unused = settings is not None and settings.row.adaptive

    def forward(self, batch: Batch) -> Loss:
        out = self.network(batch["inputs"], targets=batch["targets"])
        return Loss(out["loss"], batch.count)
