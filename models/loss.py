"""Cross-entropy straight from hidden states, in slices of tokens, so that logits of all tokens never exist at
once.

Legend: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.fp8 import MULTIPLE, HeadProducts
from models.precision import computing_dtype, without_autocast

IGNORE = -1
SLICE_ELEMENTS = 1 << 25  # logits held at once: 128 MiB in float32
CPU_SLICES = 4  # slices that are one on a CPU, whose products are faster for more rows
CACHED_ELEMENTS = 1 << 20  # logits that stay in a CPU's cache while they pass through softmax


class Products:
    """The products of slices of hidden states (n, D) and an output weight (rows, D), whose first V rows are
    tokens, in one dtype.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
        softcap: float | None,
        vocabulary: int,
        longest: int,
    ) -> None:
        """longest: slice, in tokens."""
        self.x, self.w = hidden.to(dtype), weight[:vocabulary].to(dtype)
        self.scaled = self.x if softcap is None else (hidden / softcap).to(dtype)
        # one for all slices
        self.buffer = torch.empty(longest, vocabulary, dtype=dtype, device=hidden.device)

    def logits(self, part: slice) -> Tensor:
        """Of a slice, over the softcap: (n, V) float32. The caller may overwrite them."""
        out = self.buffer[: part.stop - part.start]
        return torch.mm(self.scaled[part], self.w.t(), out=out).float()

    def backward(self, part: slice, grad: Tensor, grad_weight: Tensor | None) -> Tensor:
        """The gradient of a slice's hidden states (n, D), by that of its logits (n, V) float32; the weight's
        is added to grad_weight (rows, D), which the first slice fills (None: it is not wanted).
        """
        grad = grad.to(self.w.dtype)
        of_hidden, is_first = grad @ self.w, part.start == 0
        if grad_weight is None:
            return of_hidden
        of_tokens = grad_weight[: len(self.w)]
        if is_first:
            grad_weight[len(self.w) :] = 0
        if grad.dtype == grad_weight.dtype:
            of_tokens.addmm_(grad.t(), self.x[part], beta=float(not is_first))
        elif is_first:
            of_tokens.copy_(grad.t() @ self.x[part])
        else:
            of_tokens += grad.t() @ self.x[part]
        return of_hidden


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
        vocabulary: int,
        recipe: str | None,
        want_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n = hidden.shape[0]
        rows = _rows_of_slice(n, vocabulary, softcap is not None and hidden.device.type == "cpu")
        products: Products | HeadProducts
        if recipe is None:
            products = Products(hidden, weight, dtype, softcap, vocabulary, min(rows, n))
        else:
            rows = max(MULTIPLE, rows - rows % MULTIPLE)
            products = HeadProducts(hidden, weight, recipe, softcap, vocabulary)
        losses = torch.empty(n, dtype=torch.float32, device=hidden.device)
        hits = torch.zeros(n, dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if want_grad else None
        grad_weight = torch.empty_like(weight) if want_grad and ctx.needs_input_grad[1] else None
        for begin in range(0, n, rows):
            part = slice(begin, min(n, begin + rows))
            logits = products.logits(part)
            target = targets[part].unsqueeze(-1)
            counted = target != IGNORE
            target = target.clamp_min(0)
            if grad_hidden is not None:
                scale = counted * token_weights[part].unsqueeze(-1)
                if softcap is None:
                    of_part, grad = _plain(logits, target, scale)
                else:
                    of_part, grad = _capped(logits, target, scale, softcap)
                losses[part] = (of_part * counted).squeeze(-1)
                grad_hidden[part] = products.backward(part, grad, grad_weight)
                continue
            if softcap is not None:
                logits.tanh_().mul_(softcap)
            largest, of_target = logits.amax(-1, keepdim=True), logits.gather(-1, target)
            hit = (of_target == largest).logical_and_(counted)
            if dtype != torch.float32:  # ties are common there: the first of the largest is the guess
                hit &= logits.argmax(-1, keepdim=True) == target
            hits[part] = hit.squeeze(-1)
            log_norm = logits.sub_(largest).exp_().sum(-1, keepdim=True).log_()
            losses[part] = ((log_norm + largest - of_target) * counted).squeeze(-1)
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
            None if grad_weight is None else grad_weight.mul_(grad_total),
            None,
            token_weights_grad,
            *[None] * 5,
        )


def _rows_of_slice(n: int, vocabulary: int, in_large_slices: bool) -> int:
    """How many of n tokens; large slices are of equal size."""
    if not in_large_slices:
        return max(1, SLICE_ELEMENTS // vocabulary)
    slices = max(1, -(-n * vocabulary // (CPU_SLICES * SLICE_ELEMENTS)))
    return max(1, -(-n // slices))


def _plain(logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies (n, 1) of targets (n, 1) under logits (n, V) float32, which are overwritten, and their
    gradients, times scale (n, 1).
    """
    largest, of_target = logits.amax(-1, keepdim=True), logits.gather(-1, target)
    # of a row at a time, in place
    odds = torch.softmax(logits, -1, out=logits if logits.device.type == "cpu" else None)
    log_norm = -odds.amax(-1, keepdim=True).log_()
    return log_norm + largest - of_target, odds.mul_(scale).scatter_add_(-1, target, -scale)


def _capped(scaled: Tensor, target: Tensor, scale: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """As `_plain` under the logits softcap tanh(scaled), of which no largest need be known; gradients are
    those by softcap scaled, and take its place.
    """
    rows = len(scaled)
    if scaled.device.type == "cpu":
        rows = max(1, min(rows, CACHED_ELEMENTS // scaled.shape[1]))
    losses, buffer = torch.empty_like(scale), torch.empty_like(scaled[:rows])
    for begin in range(0, len(scaled), rows):
        part = slice(begin, min(len(scaled), begin + rows))
        tanh, wanted = scaled[part].tanh_(), target[part]
        capped = torch.mul(tanh, softcap, out=buffer[: part.stop - begin])
        odds = torch.softmax(capped, -1, out=capped if capped.device.type == "cpu" else None)
        losses[part] = -odds.gather(-1, wanted).log_()
        odds.mul_(scale[part]).scatter_add_(-1, wanted, -scale[part])
        torch.ops.aten.tanh_backward.grad_input(odds, tanh, grad_input=tanh)
    return losses, scaled


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None = None,
    softcap: float | None = None,
    vocabulary: int | None = None,
    recipe: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of the tokens' cross-entropies; per token the loss in nats; and whether the best guess is
    right.

    hidden (N, D), weight (V, D), targets (N,) int64 with IGNORE for tokens that do not count, token_weights
    (N,) float32 or None for ones. Only the sum carries a gradient; guesses are judged only where no gradient
    is wanted, and logits computed only of tokens that count. softcap c: logits z are c tanh(z / c).
    vocabulary: rows of the weight that are tokens (None: all). Under autocast the products are taken in its
    dtype; by a recipe of models.fp8, in FP8.
    """
    dtype = computing_dtype(hidden.device, hidden.dtype)
    if token_weights is None:
        token_weights = torch.ones(hidden.shape[0], device=hidden.device)
    if recipe is None and not torch.is_grad_enabled() and not hidden.is_meta:
        counted = targets != IGNORE
        if not bool(counted.all()):
            return _of_counted(hidden, weight, targets, token_weights, softcap, vocabulary, counted)
    with without_autocast(hidden.device):
        return _LinearCrossEntropy.apply(
            hidden,
            weight,
            targets,
            token_weights,
            dtype,
            softcap,
            vocabulary or weight.shape[0],
            recipe,
            torch.is_grad_enabled(),
        )


def _of_counted(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    softcap: float | None,
    vocabulary: int | None,
    counted: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As linear_cross_entropy, without gradient, where some tokens do not count (N,)."""
    losses = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
    hits = torch.zeros_like(counted)
    if bool(counted.any()):
        _, losses[counted], hits[counted] = linear_cross_entropy(
            hidden[counted], weight, targets[counted], softcap=softcap, vocabulary=vocabulary
        )
    return (losses * token_weights).sum(), losses, hits
