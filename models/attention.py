"""Causal self-attention over the keys of one or several passes, and rotary positions.

Several ways give the same numbers. "reference" joins the keys of all passes under one dense mask, as
published. "fast" attends to each pass by itself, in causal tiles, and weighs the results by their
log-sum-exp: nothing is copied, and scores of all queries x keys never exist. The backward pass works tile by
tile too: given the output and the log-sum-exp of all passes together, the usual flash backward of one tile
yields that tile's share of the gradients (Dao et al. 2022, section 3). On GPUs, whose flash kernels take no
mask, models/flex.py does what the tiles cannot.

Legend: B batch, T positions, K keys, H heads, D model width, Dh head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Rope = tuple[Tensor, Tensor]  # cos and sin of positions, each (B or 1, 1, T, Dh / 2)
KeyValue = tuple[Tensor, Tensor]  # keys and values of one pass, each (B, H, T, Dh)
TILE = 128  # queries of one kernel call where positions decide what they see
aten = torch.ops.aten


class Rotary(nn.Module):
    """Angles of rotary positions (Su et al. 2024) for interleaved pairs. State: `freqs` (Dh / 2)."""

    freqs: Tensor

    def __init__(
        self, head_width: int, base: float, rounded_to: torch.dtype | None = None, persistent: bool = True
    ) -> None:
        """rounded_to: dtype that cosines and sines are rounded to (None: they are not). persistent: `freqs`
        is kept in state dicts.
        """
        super().__init__()
        self.rounded_to = rounded_to
        exponent = math.log10(base)  # 4 to the last bit for the authors' base
        freqs = 10.0 ** (-exponent * torch.arange(0, head_width, 2).float() / head_width)
        self.register_buffer("freqs", freqs, persistent=persistent)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B or 1, T) positions -> cos and sin, each (B or 1, 1, T, Dh / 2), float32."""
        angles = positions.unsqueeze(1).unsqueeze(-1) * self.freqs
        cos, sin = angles.cos(), angles.sin()
        if self.rounded_to is None:
            return cos, sin
        return cos.to(self.rounded_to).type_as(cos), sin.to(self.rounded_to).type_as(sin)


def rotate(x: Tensor, rope: Rope | None) -> Tensor:
    """Turn neighbouring pairs of features of x (B, H, T, Dh) by the angles of their positions."""
    if rope is None:
        return x
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


@dataclass(frozen=True)
class KeyRange:
    """Keys of one pass that a tile attends to. rule: "all" of them; "causal": as many as come before or with
    each query; "after": of as many keys as queries, those that come with or after each; "positions": those
    that the positions say.
    """

    pass_index: int  # from 0
    keys: slice
    rule: str


@dataclass(frozen=True)
class Tile:
    """Queries of one slice, and the keys they attend to."""

    queries: slice
    key_ranges: tuple[KeyRange, ...]


@dataclass(frozen=True)
class AttentionPlan:
    """What the queries of a pass may see, and the work to compute it; shared by all layers of the pass.

    rope: angles of the queries' positions, or None where positions are not encoded.
    tiles: work of the fast way, empty for the reference.
    query_positions (1 or B, T); key_positions (1 or B, K_r) of each pass. window: furthest key behind a
    query, None for all.
    mask: of the reference, True where a query sees a key, (1 or B, 1, T, K). blocks: of FlexAttention, over
    the keys of all passes joined. Without tiles, mask and blocks: plain causal order over one pass.
    """

    rope: Rope | None
    tiles: tuple[Tile, ...] = ()
    query_positions: Tensor | None = None
    key_positions: tuple[Tensor, ...] = ()
    window: int | None = None
    mask: Tensor | None = None
    blocks: BlockMask | None = None


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


def causal_tiles(
    query_positions: Tensor, key_positions: list[Tensor], window: int | None
) -> tuple[Tile, ...]:
    """Cut ascending positions, of queries (1 or B, T) and of keys (1 or B, K_r) of each pass, so that few
    pairs are computed in vain.
    """
    if window is None and all(positions is query_positions for positions in key_positions):
        whole = slice(None)
        return (Tile(whole, tuple(KeyRange(i, whole, "causal") for i in range(len(key_positions)))),)
    length = query_positions.shape[1]
    begins = list(range(0, length, TILE))
    ends = [min(begin + TILE, length) for begin in begins]
    first = query_positions[:, begins]
    last = query_positions[:, [end - 1 for end in ends]]
    bounds = [_key_bounds(first, last, positions, window) for positions in key_positions]
    bounds_of_pass = torch.stack(bounds).tolist()  # the one wait for the device
    tiles = []
    for tile, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        key_ranges = []
        for pass_index, bounds_of_tile in enumerate(bounds_of_pass):
            start, stop = bounds_of_tile[tile]
            if start < stop:
                key_ranges.append(KeyRange(pass_index, slice(start, stop), "positions"))
        tiles.append(Tile(slice(begin, end), tuple(key_ranges)))
    return tuple(tiles)


def window_tiles(length: int, window: int, passes: int = 1) -> tuple[Tile, ...]:
    """Of passes at positions 0 .. length - 1, without masks: the first queries see all keys before them; then
    `window` queries at a time see the keys of their own in causal order, and of those before them the ones
    that come after each query's place.
    """
    first = slice(0, min(window + 1, length))
    cuts = [(first, [(first, "causal")])]
    for begin in range(window + 1, length, window):
        size = min(window, length - begin)
        start, seen_by_all = begin - window, begin - window + size
        ranges = [(slice(start, seen_by_all), "after")]
        if seen_by_all < begin:
            ranges.append((slice(seen_by_all, begin), "all"))
        queries = slice(begin, begin + size)
        cuts.append((queries, [*ranges, (queries, "causal")]))
    tiles = []
    for queries, ranges in cuts:
        every = product(range(passes), ranges)
        tiles.append(Tile(queries, tuple(KeyRange(number, *each) for number, each in every)))
    return tuple(tiles)


def _key_bounds(first: Tensor, last: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Of tiles whose queries reach from first to last (1 or B, tiles): the first key that some query sees,
    and one after the last key, (tiles, 2).
    """
    batch = max(positions.shape[0], first.shape[0])
    sorted_keys = positions.expand(batch, -1).contiguous()
    stops = torch.searchsorted(sorted_keys, last.expand(batch, -1).contiguous(), right=True).amax(0)
    starts = torch.zeros_like(stops)
    if window is not None:
        starts = torch.searchsorted(sorted_keys, (first - window).expand(batch, -1).contiguous()).amin(0)
    return torch.stack((starts, stops), dim=1)


def _keep_mask(plan: AttentionPlan, tile: Tile, key_range: KeyRange) -> Tensor | None:
    """Which of a tile's queries see which keys, (1 or B, 1, queries, keys) bool; None where no positions
    are asked.
    """
    if key_range.rule != "positions":
        return None
    assert plan.query_positions is not None, "tiles come with positions"
    key_positions = plan.key_positions[key_range.pass_index][:, key_range.keys]
    return visible(plan.query_positions[:, tile.queries], key_positions, plan.window)


def _bias(keep_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """0 where a key is seen, -inf elsewhere."""
    if keep_mask is None:
        return None
    zeros = torch.zeros(keep_mask.shape, dtype=dtype, device=keep_mask.device)
    return zeros.masked_fill_(~keep_mask, -torch.inf)


def _flash(q: Tensor, k: Tensor, v: Tensor, rule: str, keep_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """One tile: output (B, H, T, Dh) and log-sum-exp (B, H, T) in float32."""
    if rule == "after":  # causal order from the other end
        out, lse = _flash(q.flip(2), k.flip(2), v.flip(2), "causal", None)
        return out.flip(2), lse.flip(2)
    causal = rule == "causal"
    if q.device.type != "cpu":
        return cast(tuple[Tensor, Tensor], aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2])
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=_bias(keep_mask, q.dtype)
    )
    if keep_mask is not None:  # the kernel says 0 where a query sees nothing
        # finite: it may see nothing in any pass
        lse = lse.masked_fill(~keep_mask.any(-1), torch.finfo(lse.dtype).min)
    return out, lse


def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rule: str,
    keep_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A tile's share of the gradients of q, k and v, from the output and the log-sum-exp over all keys."""
    if rule == "after":
        grad, q, k, v, out, lse = [side.flip(2) for side in (grad, q, k, v, out, lse)]
        grad_q, grad_k, grad_v = _flash_backward(grad, q, k, v, out, lse, "causal", None)
        return grad_q.flip(2), grad_k.flip(2), grad_v.flip(2)
    causal, lse = rule == "causal", lse.contiguous()
    if q.device.type == "cpu":
        shares = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, attn_mask=_bias(keep_mask, q.dtype)
        )
    else:
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
        shares = aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, no_dropout, no_dropout
        )
    return cast(tuple[Tensor, Tensor, Tensor], shares)


# autograd takes the keys and values of all passes as one flat list of tensors: keys of pass i (from 0) are
# keys_values[2 * i], its values keys_values[2 * i + 1]


def _flattened(passes: list[KeyValue]) -> list[Tensor]:
    return [tensor for keys_values in passes for tensor in keys_values]


def _keys_values(flat: Sequence[Tensor], key_range: KeyRange) -> KeyValue:
    """The keys and values (B, H, K, Dh) of a range, from the flat list."""
    keys, values = flat[2 * key_range.pass_index], flat[2 * key_range.pass_index + 1]
    return keys[:, :, key_range.keys], values[:, :, key_range.keys]


def _accumulate(grads: list[Tensor | None], index: int, whole: Tensor, part: slice, share: Tensor) -> None:
    """Add a share of the gradient of whole[:, :, part] to grads[index], which starts as None."""
    total = grads[index]
    if total is None and part == slice(None):
        grads[index] = share
        return
    if total is None:
        total = grads[index] = torch.zeros_like(whole)
    total[:, :, part] += share


class _PassAttention(torch.autograd.Function):
    """softmax over the keys of all passes together, tile by tile.

    Takes q, the plan, then k and v of each pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, plan: AttentionPlan, *keys_values: Tensor) -> Tensor:
        outputs = []
        for tile in plan.tiles:
            queries, parts = q[:, :, tile.queries], []
            for key_range in tile.key_ranges:
                k, v = _keys_values(keys_values, key_range)
                keep_mask = _keep_mask(plan, tile, key_range)
                parts.append(_flash(queries, k, v, key_range.rule, keep_mask))
            outputs.append(_merge(parts))
        out, lse = outputs[0]
        if len(outputs) > 1:
            out = torch.cat([output for output, _ in outputs], dim=2)
            lse = torch.cat([own_lse for _, own_lse in outputs], dim=2)
        ctx.plan = plan
        ctx.save_for_backward(out, lse, q, *keys_values)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, q, *keys_values = ctx.saved_tensors
        grad_q: list[Tensor | None] = [None]
        grads: list[Tensor | None] = [None] * len(keys_values)
        for tile in ctx.plan.tiles:
            queries = tile.queries
            for key_range in tile.key_ranges:
                k, v = _keys_values(keys_values, key_range)
                share_q, share_k, share_v = _flash_backward(
                    grad_out[:, :, queries],
                    q[:, :, queries],
                    k,
                    v,
                    out[:, :, queries],
                    lse[:, :, queries],
                    key_range.rule,
                    _keep_mask(ctx.plan, tile, key_range),
                )
                keys = 2 * key_range.pass_index
                _accumulate(grad_q, 0, q, queries, share_q)
                _accumulate(grads, keys, keys_values[keys], key_range.keys, share_k)
                _accumulate(grads, keys + 1, keys_values[keys + 1], key_range.keys, share_v)
        return grad_q[0], None, *grads


def _merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs (B, H, T, Dh) and log-sum-exps (B, H, T) over disjoint keys -> the same over all of them."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part[1] for part in parts]).logsumexp(0)
    total = torch.zeros_like(parts[0][0], dtype=lse.dtype)
    for out, own in parts:
        total.addcmul_(out, (own - lse).exp_().unsqueeze(-1))
    return total.to(parts[0][0].dtype), lse


def attend(q: Tensor, passes: list[KeyValue], plan: AttentionPlan, dropout: float) -> Tensor:
    """Queries (B, H, T, Dh) over the keys and values of one or several passes -> (B, H, T, Dh)."""
    if plan.tiles:
        return cast(Tensor, _PassAttention.apply(q, plan, *_flattened(passes)))
    keys, values = passes[0]
    if len(passes) > 1:
        keys = torch.cat([own_keys for own_keys, _ in passes], dim=2)
        values = torch.cat([own_values for _, own_values in passes], dim=2)
    if plan.blocks is not None:
        from models.flex import attend_in_blocks

        return attend_in_blocks(q, keys, values, plan.blocks)
    return F.scaled_dot_product_attention(
        q, keys, values, attn_mask=plan.mask, is_causal=plan.mask is None, dropout_p=dropout
    )


class SelfAttention(nn.Module):
    """Multi-head attention. State names are the authors': `c_attn` holds q, k, v, or k, v beside `q_attn`."""

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool,
        dropout: float,
        split_qkv: bool,
        query_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.query_scale = heads, dropout, query_scale
        if split_qkv:
            self.q_attn: nn.Linear | None = nn.Linear(width, width, bias=bias)
            self.c_attn = nn.Linear(width, 2 * width, bias=bias)
        else:
            self.q_attn = None
            self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        self.resid_dropout = nn.Dropout(dropout)

    def project(
        self, x: Tensor, key_states: Tensor | None, rope: Rope | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> queries, keys and values, each (B, H, T, Dh). key_states: what keys and
        values are made of, if not x itself.
        """
        if self.q_attn is None:
            if x.shape[1] == 1 and self.query_scale == 1.0:  # decoding: one rotation, half of the calls
                of_heads = self.c_attn(x).view(x.shape[0], 3 * self.heads, 1, -1)
                q_and_k = rotate(of_heads[:, : 2 * self.heads], rope)
                return q_and_k[:, : self.heads], q_and_k[:, self.heads :], of_heads[:, 2 * self.heads :]
            q, k, v = self.c_attn(x).chunk(3, dim=-1)
        else:
            q = self.q_attn(x)
            k, v = self.c_attn(x if key_states is None else key_states).chunk(2, dim=-1)
        if self.query_scale != 1.0:
            q = q * self.query_scale
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return rotate(q, rope), rotate(k, rope), v

    def attend(self, q: Tensor, passes: list[KeyValue], plan: AttentionPlan) -> Tensor:
        """Queries (B, H, T, Dh) over the keys and values of one or several passes -> (B, H, T, Dh)."""
        return attend(q, passes, plan, self.dropout if self.training else 0.0)

    def output(self, y: Tensor) -> Tensor:
        """Heads (B, H, T, Dh) -> (B, T, D)."""
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(-2)))
