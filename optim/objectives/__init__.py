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
from models.losses import next_token
from models.transformer import Transformer


class Loss(NamedTuple):
    """mean: scalar, what is minimised. counted: of how many items (tokens, pairs, windows) it is the mean.

    A tuple, as DDP looks for tensors in what a module returns.
    """

    mean: Tensor
    counted: int


class NextToken(nn.Module):
    """Cross-entropy of the next token in nats, and what the network adds to it (depth penalties)."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network
        self.may_leave_unused = network.settings.variant.adaptive

    def forward(self, batch: Batch) -> Loss:
        hidden = self.network.run(batch["inputs"])
        return Loss(next_token(self.network, hidden, batch["targets"]).loss, batch.count)
