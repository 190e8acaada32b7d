"""Which attention kernels of a device can be used: each is tried out before its first use, in the form in
which it will be used, and must give what the reference gives.

Legend: B batch, T queries, K keys, Dh head width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from models.attention import TILE, AttentionPlan, attend, causal_tiles, visible, window_tiles

log = logging.getLogger("cotformer")
HALF = (torch.bfloat16, torch.float16)
ONE, FEW, MANY = 1, 9, TILE + 9  # queries or keys of a trial: one, a block of them or less, and more


def _kind(count: int) -> int:
    return next(kind for kind, most in ((ONE, 1), (FEW, TILE), (MANY, math.inf)) if count <= most)


class BlockForm(NamedTuple):
    """What FlexAttention has a program of its own for. queries: ONE, FEW or MANY; keys: FEW or MANY;
    sequences: 1, or 2 for more; rows: of positions, 1 where all sequences share them; shared: heads of
    queries to one of keys; gradients: whether they are wanted.
    """

    queries: int = MANY
    keys: int = MANY
    sequences: int = 2
    rows: int = 2
    shared: int = 1
    gradients: bool = True

    @classmethod
    def of(cls, positions: Tensor, keys: Sequence[Tensor], sequences: int, shared: int) -> BlockForm:
        """Of queries at positions (1 or B, T), and keys of each pass at (1 or B, K_r), in so many sequences,
        as gradients are wanted now.
        """
        rows = max(len(each) for each in (positions, *keys))
        among = max(FEW, _kind(sum(each.shape[1] for each in keys)))
        queries = _kind(positions.shape[1])
        return cls(queries, among, min(sequences, 2), min(rows, 2), shared, torch.is_grad_enabled())

    @property
    def in_words(self) -> str:
        queries = {ONE: "one query", FEW: f"up to {TILE} queries"}.get(self.queries, "many queries")
        keys = "many keys" if self.keys == MANY else f"up to {TILE} keys"
        sequences = "one sequence" if self.sequences == 1 else "several sequences"
        sequences += " at the same positions" if self.sequences > self.rows else ""
        heads = f", {self.shared} heads to a key's" if self.shared > 1 else ""
        return f"{queries}, {keys}, {sequences}{heads}, {'with' if self.gradients else 'without'} gradients"


@cache
def flash_trouble(
    device: torch.device, dtype: torch.dtype, head_width: int, in_window: bool = False
) -> str | None:
    """Why this device's flash kernels cannot attend to passes one by one, or to one pass in a window; None
    where they can.
    """
    if device.type == "cpu":
        return None
    trouble = _unfit(device, dtype)
    if trouble is not None or head_width % 8:
        return trouble or f"heads of {head_width} features, which are no multiple of 8"
    length, count = 2 * TILE, 3 if in_window else 5
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        inputs = _trial_inputs(device, dtype, [(2, 2, length, head_width)] * count, gradients=True)
        positions = torch.arange(length, device=device).unsqueeze(0)
        window = 3 * TILE // 4 if in_window else None  # the last tile has keys of all kinds
        tiles = causal_tiles(positions, [positions] * (count // 2), None)
        if window is not None:
            tiles = window_tiles(length, window)
        mask = visible(positions, positions, window).repeat(1, 1, 1, count // 2)
        trouble = _difference([AttentionPlan(None, tiles), AttentionPlan(None, mask=mask)], inputs)
    return _told(trouble, f"flash attention {'in a window' if in_window else 'pass by pass'}")


@cache
def block_trouble(device: torch.device, dtype: torch.dtype, head_width: int, form: BlockForm) -> str | None:
    """Why FlexAttention cannot be used where tokens have left, and in a window; None where it can."""
    trouble = _unfit(device, dtype)
    if trouble is not None:
        return trouble
    try:
        from models.flex import block_mask
    except ImportError:
        return f"torch {torch.__version__} does not have it"
    count, length = form.queries, 3 * TILE + 5 if form.keys == MANY else TILE // 2
    whole = torch.arange(length, device=device).expand(form.rows, -1)
    left = whole[:, length - 2 * count :: 2][:, :count].clone()
    left[-1, count - count // 8 :] = length  # padding, which nothing sees
    of_keys = (form.sequences, 2, length, head_width), (form.sequences, 2, count, head_width)
    of_queries = form.sequences, 2 * form.shared, count, head_width
    shapes = [of_queries, *of_keys[:1] * 2, *of_keys[1:] * 2]
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(form.gradients),
        torch.autocast(device.type, enabled=False),
    ):
        inputs = _trial_inputs(device, dtype, shapes, form.gradients)
        for window in (None, TILE // 4):
            mask = visible(left, torch.cat([whole, left], dim=1), window)
            blocks = block_mask(left, [whole, left], window)
            plans = [AttentionPlan(None, blocks=blocks), AttentionPlan(None, mask=mask)]
            trouble = _difference(plans, inputs, left < length)
            if trouble is not None:
                return _told(trouble, f"FlexAttention of {form.in_words}")
    return None


def _told(trouble: str | None, what: str) -> str | None:
    """A trial's outcome, with a line where the kernels are there and fail: it may be a fault of ours."""
    if trouble is not None:
        log.warning(f"note: {what} was tried out and is not used: {trouble}")
    return trouble


def _unfit(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels are not tried."""
    if device.type != "cuda":
        return f"{device.type} has none"
    return None if dtype in HALF else f"it is for half precision, not {str(dtype).removeprefix('torch.')}"


def _trial_inputs(
    device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]], gradients: bool
) -> list[Tensor]:
    """q, k, v, k, v, ..., each of a shape (B, heads, length, Dh)."""
    inputs = []
    for i, shape in enumerate(shapes):
        numbers = torch.arange(math.prod(shape), device=device).mul(0.37 + 0.11 * i).sin()
        inputs.append(numbers.view(shape).to(dtype).requires_grad_(gradients))
    return inputs


def _difference(
    plans: Sequence[AttentionPlan], inputs: Sequence[Tensor], counted: Tensor | None = None
) -> str | None:
    """Why two plans do not give the same output, and the same gradients of inputs q, k, v, k, v, ... where
    these are wanted; None where they do. counted: queries (B, T) whose output is asked for (None: all).
    """
    results = []
    try:
        for plan in plans:
            results.append(_outcome(plan, inputs, counted))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, a driver or a missing kernel makes of it
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    for mine, theirs in zip(*results, strict=True):
        if not torch.allclose(mine, theirs, rtol=0.05, atol=0.05):
            return "its numbers are not those of the reference"
    return None


def _outcome(plan: AttentionPlan, inputs: Sequence[Tensor], counted: Tensor | None) -> list[Tensor]:
    """Output, and gradients where inputs want them."""
    queries, *keys_values = inputs
    if plan.blocks is None:  # which shares heads by itself
        shared = queries.shape[1] // keys_values[0].shape[1]
        keys_values = [each.repeat_interleave(shared, dim=1) for each in keys_values]
    out = attend(queries, list(zip(keys_values[::2], keys_values[1::2], strict=True)), plan, 0.0)
    if counted is not None:
        out = out * counted[:, None, :, None]
    if not queries.requires_grad:
        return [out]
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]
