"""Attention under a mask that positions make, without the mask: FlexAttention (torch.nn.attention), which
computes in blocks, and leaves out those in which no query sees a key. For GPUs, whose flash kernels take no
mask.

Legend: B batch, T queries, K keys of all passes, H heads, G heads of keys and values, Dh head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as symbols
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # queries, and keys, of a block
EVERYTHING = 2**31 - 1  # a window that no position is outside of
PROGRAMS = 64  # most of a process: past torch's limit of 8, scores of all pairs would be held


def _sees(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Callable[..., Tensor]:
    """The rule of models.attention.visible, for one pair of places; of positions (1 or B, T) and (1 or B, K),
    both of one batch. The same code for all windows and for none, so that it is compiled once.
    """
    own_rows = len(query_positions) > 1
    furthest = torch.full_like(query_positions[0, 0], EVERYTHING if window is None else window)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = batch if own_rows else 0
        distance = query_positions[row, query] - key_positions[row, key]
        return (distance >= 0) & (distance <= furthest)

    return sees


def _bounds(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest position of each block, (1 or B, blocks)."""
    length = positions.shape[1]
    padded = torch.nn.functional.pad(positions, (0, -length % BLOCK), mode="constant")
    padded[:, length:] = positions[:, -1:]
    blocks = padded.unflatten(1, (-1, BLOCK))
    return blocks.amin(-1), blocks.amax(-1)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks are chosen in each row, and which, those first, in int32; of (B, 1, rows, blocks)."""
    dense = chosen.to(torch.uint8, memory_format=torch.contiguous_format, copy=True)
    counts = dense.sum(-1, dtype=torch.int32)
    return counts, dense.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


def block_mask(query_positions: Tensor, key_positions: Sequence[Tensor], window: int | None) -> BlockMask:
    """Of queries at positions (1 or B, T) and the keys of all passes, joined, at (1 or B, K_r) each, in any
    order. A block is left out where the bounds of its positions say that no query sees a key, and computed
    without asking where they say that all see all.
    """
    batch = max(len(positions) for positions in (query_positions, *key_positions))
    keys = torch.cat([positions.expand(batch, -1) for positions in key_positions], dim=1)
    queries = query_positions.expand(batch, -1).contiguous()
    first, last = (bound[:, None, :, None] for bound in _bounds(queries))
    least, most = (bound[:, None, None, :] for bound in _bounds(keys))
    seen, whole = least <= last, most <= first
    if window is not None:
        seen = seen & (most >= first - window)
        whole = whole & (least >= last - window)
    # the kernels look for the end in blocks that they ask about
    if queries.shape[1] % BLOCK:
        whole[:, :, -1] = False
    if keys.shape[1] % BLOCK:
        whole[:, :, :, -1] = False
    asked, whole = seen & ~whole, seen & whole
    return BlockMask(
        (queries.shape[1], keys.shape[1]),
        *_listed(asked),
        *_listed(whole),
        *_listed(asked.mT),
        *_listed(whole.mT),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=_sees(queries, keys, window),
    )


@cache
def whole_block_mask(length: int, window: int | None, passes: int, device: torch.device) -> BlockMask:
    """As `block_mask`, of passes at positions 0 .. length - 1; made once, and never dropped, as CUDA graphs
    go on reading it: for a model's one full length.
    """
    with torch.inference_mode(False):
        positions = torch.arange(length, device=device).unsqueeze(0)
        return block_mask(positions, [positions] * passes, window)


@cache
def kernel(kind: str) -> Callable[..., Any]:
    """FlexAttention for a kind of device: on GPUs compiled, for any numbers of queries and keys."""
    if kind == "cpu":
        return flex_attention
    return compiled("inductor")


def compiled(backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """FlexAttention, compiled once for all sizes but 1. torch takes sizes that are equal at first for one
    size, and would compile again where they part: here they do, as tokens leave.
    """
    dynamo.recompile_limit = max(dynamo.recompile_limit, PROGRAMS)
    program = torch.compile(flex_attention, dynamic=True, backend=backend)

    def call(*given: Any, **more: Any) -> Any:
        with symbols.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return program(*given, **more)

    return call


def attend_in_blocks(q: Tensor, keys: Tensor, values: Tensor, blocks: BlockMask) -> Tensor:
    """Queries (B, H, T, Dh) over keys and values (B, G, K, Dh) -> (B, H, T, Dh)."""
    shares = q.shape[1] != keys.shape[1]
    out: Tensor = kernel(q.device.type)(q, keys, values, block_mask=blocks, enable_gqa=shares)
    return out
