"""Causal self-attention over the keys of one or several passes, and rotary positions.

Two ways give the same numbers. "reference" joins the keys of all passes under one dense mask, as published.
"fast" attends to each pass by itself, in causal tiles, and weighs the results by their log-sum-exp: nothing
is copied, and scores of all queries x keys never exist. The backward pass works tile by tile too: given the
output and the log-sum-exp of all passes together, the usual flash backward of one tile yields that tile's
share of the gradients (Dao et al. 2022, section 3).

Legend: B batch, T positions, K keys, H heads, D model width, Dh head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]  # keys and values of one pass, each (B, H, T, Dh)
TILE = 128  # queries that are looked at together where positions decide what they see
aten = torch.ops.aten
HALF = (torch.bfloat16, torch.float16)


class Rotary(nn.Module):
    """Angles of rotary positions (Su et al. 2024) for interleaved pairs, base 10000. State: `freqs` (Dh /
    2).
    """

    freqs: Tensor

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 10.0 ** (-4.0 * torch.arange(0, head_width, 2).float() / head_width))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B or 1, T) positions -> cos and sin, each (B or 1, 1, T, Dh / 2), float32."""
        angles = positions.unsqueeze(1).unsqueeze(-1) * self.freqs
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turn neighbouring pairs of features of x (B, H, T, Dh) by the angles of their positions."""
    if rope is None:
        return x
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


@dataclass(frozen=True)
class Seen:
    """Keys of one pass that a tile looks at: all of them, as many as come before or with each query
    ("causal"), or those that the positions say.
    """

    number: int
    keys: slice
    how: str


@dataclass(frozen=True)
class Tile:
    """Queries of one slice, and what they look at."""

    queries: slice
    seen: tuple[Seen, ...]


@dataclass(frozen=True)
class Positions:
    """Where the queries of a pass stand and what they may see; shared by all layers of the pass.

    rope: angles of the queries' positions, or None where positions are not encoded.
    tiles: work of the fast way, empty for the reference.
    queries (1 or B, T), keys (1 or B, K_r) of each pass: positions. window: furthest key behind a query, None
    for all.
    mask: of the reference, True where a query sees a key, (1 or B, 1, T, K); None means plain causal order
    over one pass.
    """

    rope: tuple[Tensor, Tensor] | None
    tiles: tuple[Tile, ...] = ()
    queries: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    window: int | None = None
    mask: Tensor | None = None


def visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """The one rule of every cached case: a key is seen iff key_pos <= query_pos (and not further back than a
    window).

    (B or 1, T) and (B or 1, K) -> (B or 1, 1, T, K) bool.
    """
    distance = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
    seen = distance >= 0
    if window is not None:
        seen &= distance <= window
    return seen.unsqueeze(1)


def causal_tiles(queries: Tensor, keys: list[Tensor], window: int | None) -> tuple[Tile, ...]:
    """Cut ascending positions, queries (1 or B, T) and keys (1 or B, K_r) of each pass, so that few pairs
    are looked at in vain.
    """
    if window is None and all(positions is queries for positions in keys):
        return (Tile(slice(None), tuple(Seen(number, slice(None), "causal") for number in range(len(keys)))),)
    length = queries.shape[1]
    begins = list(range(0, length, TILE))
    ends = [min(begin + TILE, length) for begin in begins]
    last, first = queries[:, [end - 1 for end in ends]], queries[:, begins]
    bounds = []  # of each pass, per tile: first key that some query sees, and one after the last
    for positions in keys:
        rows = max(positions.shape[0], queries.shape[0])
        sorted_keys = positions.expand(rows, -1).contiguous()
        stops = torch.searchsorted(sorted_keys, last.expand(rows, -1).contiguous(), right=True).amax(0)
        starts = torch.zeros_like(stops)
        if window is not None:
            starts = torch.searchsorted(sorted_keys, (first - window).expand(rows, -1).contiguous()).amin(0)
        bounds.append(torch.stack((starts, stops), dim=1))
    cuts = torch.stack(bounds).tolist()  # the one wait for the device
    return tuple(
        Tile(
            slice(begin, end),
            tuple(
                Seen(number, slice(*cut[turn]), "positions")
                for number, cut in enumerate(cuts)
                if cut[turn][0] < cut[turn][1]
            ),
        )
        for turn, (begin, end) in enumerate(zip(begins, ends, strict=True))
    )


def _pairs(at: Positions, tile: Tile, part: Seen) -> Tensor | None:
    """Which of a tile's queries see which keys, (1 or B, 1, queries, keys) bool; None where no positions
    are asked.
    """
    if part.how != "positions":
        return None
    assert at.queries is not None, "tiles come with positions"
    return visible(at.queries[:, tile.queries], at.keys[part.number][:, part.keys], at.window)


def _bias(pairs: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return (
        None
        if pairs is None
        else torch.zeros(pairs.shape, dtype=dtype, device=pairs.device).masked_fill_(~pairs, -torch.inf)
    )


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, pairs: Tensor | None) -> tuple[Tensor, Tensor]:
    """One tile: output (B, H, T, Dh) and log-sum-exp (B, H, T) in float32."""
    if q.device.type != "cpu":
        return cast(tuple[Tensor, Tensor], aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2])
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=_bias(pairs, q.dtype)
    )
    if pairs is not None:  # the kernel says 0 where a query sees nothing
        # finite: it may see nothing in any pass
        lse = lse.masked_fill(~pairs.any(-1), torch.finfo(lse.dtype).min)
    return out, lse


def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    pairs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A tile's share of the gradients of q, k and v, from the output and the log-sum-exp over all keys."""
    if q.device.type == "cpu":
        shares = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, attn_mask=_bias(pairs, q.dtype)
        )
    else:
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
        shares = aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, no_dropout, no_dropout
        )
    return cast(tuple[Tensor, Tensor, Tensor], shares)


class _PassAttention(torch.autograd.Function):
    """softmax over the keys of all passes together, tile by tile.

    Takes q, the positions, then k and v of each pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, at: Positions, *passes: Tensor) -> Tensor:
        parts = []
        for tile in at.tiles:
            rows = q[:, :, tile.queries]
            parts.append(
                _merge(
                    [
                        _flash(
                            rows,
                            passes[2 * part.number][:, :, part.keys],
                            passes[2 * part.number + 1][:, :, part.keys],
                            part.how == "causal",
                            _pairs(at, tile, part),
                        )
                        for part in tile.seen
                    ]
                )
            )
        out, lse = (
            parts[0] if len(parts) == 1 else (torch.cat(column, dim=2) for column in zip(*parts, strict=True))
        )
        ctx.at = at
        ctx.save_for_backward(out, lse, q, *passes)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *inputs = ctx.saved_tensors
        at, q = ctx.at, inputs[0]
        grads: list[Any] = [None] * len(inputs)
        for tile in at.tiles:
            rows = tile.queries
            for part in tile.seen:
                k, v = 2 * part.number + 1, 2 * part.number + 2
                shares = _flash_backward(
                    grad_out[:, :, rows],
                    q[:, :, rows],
                    inputs[k][:, :, part.keys],
                    inputs[v][:, :, part.keys],
                    out[:, :, rows],
                    lse[:, :, rows],
                    part.how == "causal",
                    _pairs(at, tile, part),
                )
                for place, where, share in (
                    (0, rows, shares[0]),
                    (k, part.keys, shares[1]),
                    (v, part.keys, shares[2]),
                ):
                    if grads[place] is None and where == slice(None):
                        grads[place] = share
                    else:
                        grads[place] = (
                            torch.zeros_like(inputs[place]) if grads[place] is None else grads[place]
                        )
                        grads[place][:, :, where] += share
        return grads[0], None, *grads[1:]


def _merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs (B, H, T, Dh) and log-sum-exps (B, H, T) over disjoint keys -> the same over all of them."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part[1] for part in parts]).logsumexp(0)
    total = torch.zeros_like(parts[0][0], dtype=lse.dtype)
    for out, own in parts:
        total.addcmul_(out, (own - lse).exp_().unsqueeze(-1))
    return total.to(parts[0][0].dtype), lse


def _attend(q: Tensor, passes: list[KeyValue], at: Positions, dropout: float) -> Tensor:
    """Queries (B, H, T, Dh) over the keys and values of one or several passes -> (B, H, T, Dh)."""
    if at.tiles:
        return cast(Tensor, _PassAttention.apply(q, at, *(t for kv in passes for t in kv)))
    keys, values = (
        passes[0] if len(passes) == 1 else (torch.cat([kv[i] for kv in passes], dim=2) for i in (0, 1))
    )
    return F.scaled_dot_product_attention(
        q, keys, values, attn_mask=at.mask, is_causal=at.mask is None, dropout_p=dropout
    )


@cache
def flash_works(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether this device's flash kernels attend to passes one by one and give what the reference gives;
    tried out, once.
    """
    if device.type == "cpu":
        return True
    if device.type != "cuda" or dtype not in HALF or head_width % 8:
        return False
    length = 2 * TILE
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        shape = (2, 2, length, head_width)
        inputs = [
            torch.arange(math.prod(shape), device=device)
            .mul(0.37 + 0.11 * i)
            .sin()
            .view(shape)
            .to(dtype)
            .requires_grad_()
            for i in range(5)
        ]
        everyone = torch.arange(length, device=device).unsqueeze(0)
        fast = Positions(None, causal_tiles(everyone, [everyone, everyone], None))
        dense = Positions(None, mask=visible(everyone, everyone, None).repeat(1, 1, 1, 2))
        try:
            ways = []
            for at in (fast, dense):
                out = _attend(inputs[0], [(inputs[1], inputs[2]), (inputs[3], inputs[4])], at, 0.0)
                ways.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return False
    return all(torch.allclose(mine, theirs, rtol=0.05, atol=0.05) for mine, theirs in zip(*ways, strict=True))


class SelfAttention(nn.Module):
    """Multi-head attention. State names are the authors': `c_attn` holds q, k, v, or k, v beside `q_attn`."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float, split_qkv: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        if split_qkv:
            self.q_attn: nn.Linear | None = nn.Linear(width, width, bias=bias)
            self.c_attn = nn.Linear(width, 2 * width, bias=bias)
        else:
            self.q_attn = None
            self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        self.resid_dropout = nn.Dropout(dropout)

    def project(
        self, x: Tensor, x_keys: Tensor | None, rope: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> queries, keys and values, each (B, H, T, Dh). x_keys: what keys and values are
        made of, if not x itself.
        """
        if self.q_attn is None:
            q, k, v = self.c_attn(x).chunk(3, dim=-1)
        else:
            q = self.q_attn(x)
            k, v = self.c_attn(x if x_keys is None else x_keys).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return rotate(q, rope), rotate(k, rope), v

    def attend(self, q: Tensor, passes: list[KeyValue], at: Positions) -> Tensor:
        """Queries (B, H, T, Dh) over the keys and values of one or several passes -> (B, H, T, Dh)."""
        return _attend(q, passes, at, self.dropout if self.training else 0.0)

    def output(self, y: Tensor) -> Tensor:
        """Heads (B, H, T, Dh) -> (B, T, D)."""
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(-2)))
