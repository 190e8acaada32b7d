"""Next-token losses of hidden states: plain, with a penalty, or expected over the exits of all passes.

Legend: B batch, T positions, R passes, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.hidden import Exits, Hidden
from models.loss import IGNORE, linear_cross_entropy
from models.network import Network


@dataclass(frozen=True)
class NextTokenLoss:
    """loss: what training minimises, in nats per token; cross_entropy_loss: the part of it that is mean
    cross-entropy.

    token_losses, hits (B, T): cross-entropies in nats and, where no gradient is taken, correct guesses; None
    where the loss is an expectation over exits.
    """

    loss: Tensor
    cross_entropy_loss: Tensor
    token_losses: Tensor | None = None
    hits: Tensor | None = None


def next_token(network: Network, hidden: Hidden, targets: Tensor) -> NextTokenLoss:
    """The loss of targets (B, T) int64, IGNORE where there is none."""
    norm, weight = network.head
    softcap, vocabulary = getattr(network, "softcap", None), getattr(network, "vocabulary", None)
    if hidden.exits is not None:
        return _expected(norm, weight, hidden.exits, targets, softcap, vocabulary)
    total, losses, hits = linear_cross_entropy(
        norm(hidden.states).flatten(0, 1), weight, targets.flatten(), softcap=softcap, vocabulary=vocabulary
    )
    cross_entropy = total / (targets != IGNORE).sum()
    penalty = 0.0 if hidden.penalty is None else hidden.penalty
    return NextTokenLoss(
        loss=cross_entropy + penalty,
        cross_entropy_loss=cross_entropy,
        token_losses=losses.view_as(targets),
        hits=hits.view_as(targets),
    )


def _expected(
    norm: nn.Module,
    weight: Tensor,
    exits: Exits,
    targets: Tensor,
    softcap: float | None,
    vocabulary: int | None,
) -> NextTokenLoss:
    """Expected loss over exits, plus the divergence of the exits' distribution from a geometric one (Banino
    et al. 2021).
    """
    _, repeats, _, width = exits.states.shape
    halting = exits.halting
    mass = torch.clamp(_rest_to_last(_geometric(halting.transpose(1, 2).flatten(0, 1))), 0.0, 1.0)  # (B T, R)
    prior = _rest_to_last(_geometric(torch.full((1, repeats), exits.prior, device=halting.device)))
    divergence = F.kl_div((mass + 1e-8).log(), prior.expand_as(mass), reduction="batchmean")
    # the authors read the (B T, R) masses in the order (B, R, T) of the losses; their published numbers stand
    # on it
    total, _, _ = linear_cross_entropy(
        norm(exits.states).reshape(-1, width),
        weight,
        targets.unsqueeze(1).expand(-1, repeats, -1).flatten(),
        mass.flatten().float(),  # the autocast of CPUs leaves it in half precision
        softcap,
        vocabulary,
    )
    expected = total / mass.numel()
    return NextTokenLoss(
        loss=expected + exits.divergence_weight * divergence,
        cross_entropy_loss=expected,
    )


def _geometric(rates: Tensor) -> Tensor:
    """Rates of stopping at each of R steps (N, R) -> probabilities of stopping there and not before."""
    left = _sums_so_far(torch.clamp(1 - rates, min=1e-10, max=1.0).log()).exp()
    return F.pad(left[:, :-1], (1, 0), value=1.0) * rates


def _sums_so_far(x: Tensor) -> Tensor:
    """As x.cumsum(-1), whose CUDA kernel has no fixed order, so that --deterministic refuses it."""
    if x.device.type == "cpu":
        return x.cumsum(-1)
    return torch.stack(list(accumulate(x.unbind(-1))), dim=-1)


def _rest_to_last(mass: Tensor) -> Tensor:
    """Give what is missing to one to the last step."""
    return torch.cat((mass[:, :-1], 1 - mass[:, :-1].sum(-1, keepdim=True)), dim=-1)
