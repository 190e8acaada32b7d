"""Losses of preferences and of rewards, as functions of log-probabilities, and how a policy and its frozen
reference score the same tokens.

    logps = completion_logps(network, tokens, mask)                     # (N, T)
    loss = dpo_loss(*(each.sum(1) for each in (chosen, rejected, ref_chosen, ref_rejected)), beta=0.1)
    loss = grpo_loss(logps, logps.detach(), ref_logps, group_advantages(rewards, groups), mask).loss

DPO: Rafailov et al. 2023. GRPO: Shao et al. 2024; its divergence is the estimate k3 of Schulman (2020).

Legend: N sequences, T targets of each, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError
from models.fp8 import head_recipe
from models.loss import IGNORE, linear_cross_entropy
from models.precision import computing_dtype
from models.routing import length_factors

SMALLEST_SPREAD = 1e-8  # of the rewards of a group, by which their differences are divided


class Scores(NamedTuple):
    """logps (N, T): log-probability of each target in nats, 0 of those that do not count. penalty: scalar
    that the network adds to its loss in training, 0 where it has none.
    """

    logps: Tensor
    penalty: Tensor | float


class GrpoLoss(NamedTuple):
    """loss: scalar. k3: mean divergence from the reference of the tokens that count, in nats; clipped: share
    of these whose ratio is outside the clip range.
    """

    loss: Tensor
    k3: Tensor
    clipped: Tensor


class _TokenLosses(torch.autograd.Function):
    """Cross-entropies (N,), each with a gradient: that of their weighted sum is made of logits that are
    computed again in the backward pass, a slice at a time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.head, ctx.dtype = head, computing_dtype(hidden.device, hidden.dtype)
        with torch.no_grad():
            return linear_cross_entropy(hidden, weight, targets, **head)[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = (each.detach() for each in ctx.saved_tensors)
        kind = hidden.device.type
        in_half = ctx.dtype not in (torch.float32, torch.float64)
        with torch.enable_grad(), torch.autocast(kind, ctx.dtype) if in_half else nullcontext():
            given = hidden.requires_grad_(), weight.requires_grad_(ctx.needs_input_grad[1])
            total = linear_cross_entropy(*given, targets, grad.contiguous(), **ctx.head)[0]
            total.backward()
        return hidden.grad, weight.grad, None, None


def scored(network: Any, tokens: Tensor, mask: Tensor) -> Scores:
    """What a network (models.network.Network) says of sequences, tokens (N, T + 1) int64, of which the
    targets tokens[:, 1:] count where mask (N, T) is true.

    Raises UserError for a network without one state of each token.
    """
    hidden = network.run(tokens[:, :-1])
    if hidden.exits is not None:
        raise UserError("a preference compares one state of each token, and this network has several")
    norm, weight = network.head
    head = {
        "softcap": getattr(network, "softcap", None),
        "vocabulary": getattr(network, "vocabulary", None),
        "recipe": head_recipe(network),
    }
    targets = tokens[:, 1:].masked_fill(~mask, IGNORE)
    losses: Tensor = _TokenLosses.apply(norm(hidden.states).flatten(0, 1), weight, targets.flatten(), head)
    penalty = 0.0 if hidden.penalty is None else hidden.penalty
    return Scores(-losses.view_as(targets), penalty)


def completion_logps(network: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """The log-probabilities of `scored`, (N, T)."""
    return scored(network, tokens, mask).logps


@contextmanager
def routed_alike(policy: Any, reference: Any) -> Iterator[None]:
    """Both networks let the same shares of tokens go on: in training those that are drawn once here, in
    evaluation those that the policy is evaluated with. No effect on networks that route no tokens.
    """
    settings = getattr(policy, "settings", None)
    if settings is None or not settings.variant.routes:
        yield
        return
    factors = tuple(length_factors(settings, policy.training))
    shares: dict[str, Any] = {"eval_length_factor": factors, "router_threshold": settings.router_threshold}
    if policy.training:  # the reference is always in evaluation mode
        shares |= {"training_length_factor": factors, "routing": "capacity"}
    else:
        shares["routing"] = settings.routing
    own = policy.settings, reference.settings
    policy.settings, reference.settings = (replace(each, **shares) for each in own)
    try:
        yield
    finally:
        policy.settings, reference.settings = own


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Mean over pairs of -log sigmoid(margin), of log-probabilities of whole completions, (pairs,) each."""
    return F.softplus(-margins(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)).mean()


def margins(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Reward of the chosen completion less that of the rejected one, where a reward is beta x
    (log-probability under the policy - under the reference): (pairs,).
    """
    return beta * (policy_chosen - ref_chosen) - beta * (policy_rejected - ref_rejected)


def group_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """How much better each reward (N,) is than the mean of its group, in standard deviations (of the group as
    the whole population); 0 where all of a group are equal. groups (N,): a number of each group.
    """
    wide = rewards.double()
    advantages = torch.zeros_like(wide)
    for group in groups.unique().tolist():
        mine = groups == group
        of_group = wide[mine]
        if of_group.min() < of_group.max():
            spread = of_group.std(correction=0).clamp(min=SMALLEST_SPREAD)
            advantages[mine] = (of_group - of_group.mean()) / spread
    return advantages.float()


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    beta: float = 0.1,
    epsilon: float = 0.2,
) -> GrpoLoss:
    """Clipped policy gradient, less beta x k3: mean over completions of the mean over their tokens.

    logps, old_logps, ref_logps (N, T): of each token under the policy, the policy that sampled, and the
    reference (None: no divergence); advantages (N,); mask (N, T) bool: tokens of the completion.
    """
    ratio = (logps - old_logps).exp()
    limited = ratio.clamp(1 - epsilon, 1 + epsilon)
    each = advantages.unsqueeze(1)
    gain = torch.minimum(ratio * each, limited * each)
    k3 = torch.zeros_like(logps)
    if ref_logps is not None:
        apart = ref_logps - logps
        k3 = apart.exp() - apart - 1
    lengths = mask.sum(1).clamp(min=1)
    of_completions = ((gain - beta * k3) * mask).sum(1) / lengths
    counted = mask.sum().clamp(min=1)
    return GrpoLoss(
        loss=-of_completions.mean(),
        k3=(k3.detach() * mask).sum() / counted,
        clipped=((ratio != limited) & mask).sum() / counted,
    )
