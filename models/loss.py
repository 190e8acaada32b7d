"""Cross-entropy straight from hidden states, in slices of tokens, so that logits of all tokens never exist at
once.

Legend: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.precision import computing_dtype, without_autocast

IGNORE = -1
SLICE_ELEMENTS = 1 << 25  # logits held at once: 128 MiB in float32


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, slice by slice, while the slice's logits are at hand.

    The softmax gradient stays in [-1, 1] until the last multiplication, so that half precision does not lose
    it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        dtype: torch.dtype,
        softcap: float | None,
        want_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, rows = hidden.shape[0], max(1, SLICE_ELEMENTS // weight.shape[0])
        if softcap is not None:  # whose tanh is held beside the logits
            rows = max(1, rows // 2)
        x, w = hidden.to(dtype), weight.to(dtype)
        losses = torch.empty(n, dtype=torch.float32, device=hidden.device)
        hits = torch.zeros(n, dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if want_grad else None
        grad_weight = torch.zeros_like(weight) if want_grad else None
        # one for all slices
        buffer = torch.empty(min(rows, n), weight.shape[0], dtype=dtype, device=hidden.device)
        capped = torch.empty_like(buffer if softcap is not None else buffer[:0], dtype=torch.float32)
        for begin in range(0, n, rows):
            part = slice(begin, min(n, begin + rows))
            logits = torch.mm(x[part], w.t(), out=buffer[: part.stop - begin]).float()
            if softcap is not None:
                tanh = logits.div_(softcap).tanh_()
                logits = torch.mul(tanh, softcap, out=capped[: part.stop - begin])
            target = targets[part].unsqueeze(-1)
            counted = target != IGNORE
            target = target.clamp_min(0)
            largest, of_target = logits.amax(-1, keepdim=True), logits.gather(-1, target)
            if grad_hidden is None or grad_weight is None:
                hit = (of_target == largest).logical_and_(counted)
                if dtype != torch.float32:  # ties are common there: the first of the largest is the guess
                    hit &= logits.argmax(-1, keepdim=True) == target
                hits[part] = hit.squeeze(-1)
                log_norm = logits.sub_(largest).exp_().sum(-1, keepdim=True).log_()
                losses[part] = ((log_norm + largest - of_target) * counted).squeeze(-1)
                continue
            # of a row at a time, in place
            odds = torch.softmax(logits, -1, out=logits if logits.device.type == "cpu" else None)
            log_norm = -odds.amax(-1, keepdim=True).log_()
            losses[part] = ((log_norm + largest - of_target) * counted).squeeze(-1)
            scale = counted * token_weights[part].unsqueeze(-1)
            odds.mul_(scale).scatter_add_(-1, target, -scale)
            if softcap is not None:
                odds.addcmul_(odds, tanh.square_(), value=-1)  # times the slope of the cap
            grad = odds.to(dtype)
            grad_hidden[part] = grad @ w
            if dtype == weight.dtype:
                grad_weight.addmm_(grad.t(), x[part])
            else:
                grad_weight += grad.t() @ x[part]
        ctx.save_for_backward(grad_hidden, grad_weight, losses)
        ctx.mark_non_differentiable(losses, hits)
        return (losses * token_weights).sum(), losses, hits

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, losses = ctx.saved_tensors
        token_weights_grad = losses * grad_total if ctx.needs_input_grad[3] else None
        # in place, as a copy would be in memory with all activations; torch refuses a second backward
        # pass of itself
        return (
            grad_hidden.mul_(grad_total),
            grad_weight.mul_(grad_total),
            None,
            token_weights_grad,
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of the tokens' cross-entropies; per token the loss in nats; and whether the best guess is
    right.

    hidden (N, D), weight (V, D), targets (N,) int64 with IGNORE for tokens that do not count, token_weights
    (N,) float32 or None for ones. Only the sum carries a gradient; guesses are judged only where no gradient
    is wanted. softcap c: logits z are c tanh(z / c). Under autocast the products are taken in its dtype.
    """
    dtype = computing_dtype(hidden.device, hidden.dtype)
    if token_weights is None:
        token_weights = torch.ones(hidden.shape[0], device=hidden.device)
    with without_autocast(hidden.device):
        return _LinearCrossEntropy.apply(
            hidden, weight, targets, token_weights, dtype, softcap, torch.is_grad_enabled()
        )
