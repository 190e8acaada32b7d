"""Keys and values of all tokens so far, for generation: a new token is all that is computed.

Legend: B batch, S tokens of one call, R passes, H heads, D model width, Dh head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import AttentionPlan, KeyRange, Rope, Tile, causal_tiles, visible
from models.memory import Stack
from models.planner import Planner
from models.settings import ModelSettings


class Kernel(Enum):
    """How the queries of one call are attended to."""

    ONE_QUERY = "products over the keys of all passes at once"
    TILES = "flash attention, pass by pass"
    MASK = "one masked kernel over the keys of all passes joined"


def choose_kernel(fast: bool, one_query: bool, dtype: torch.dtype, flash_works: bool) -> Kernel:
    """fast: --attention fast; flash_works: flash attention can do this call on this device in this dtype.

    Products would round the scores of half precision, which kernels keep in float32.
    """
    if fast and one_query and dtype == torch.float32:
        return Kernel.ONE_QUERY
    return Kernel.TILES if flash_works else Kernel.MASK


def key_ranges(in_order: bool, one_query: bool, before: int, used: int) -> list[tuple[slice, str]]:
    """Keys of each pass for one tile of all queries, and the rule of each range (KeyRange).

    in_order: slot and position agree in all sequences. before: slots of earlier calls, all seen; the slots up
    to `used` are of this call.
    """
    if not in_order:
        return [(slice(None), "positions")]
    if one_query:
        return [(slice(None), "all")]
    if before == 0:
        return [(slice(before, used), "causal")]
    return [(slice(before), "all"), (slice(before, used), "causal")]


@dataclass(frozen=True)
class View:
    """What the queries of one call see in the layers of a pass: K slots of `passes`.

    For Kernel.ONE_QUERY the plan has the angles alone, and keep_mask is True where a key is seen, (R * B, 1,
    1, K), or None for everywhere.
    """

    passes: slice
    slots: slice
    kernel: Kernel
    plan: AttentionPlan
    keep_mask: Tensor | None = None


def attend_from_one(q: Tensor, keys: Tensor, values: Tensor, keep_mask: Tensor | None) -> Tensor:
    """The query of one token, (B, H, 1, Dh), over keys and values of R passes, each (R, B, H, K, Dh) -> (B,
    H, 1, Dh). Queries that share keys and values come in the place of the one: (B, G, H / G, Dh).

    keep_mask: True where a key is seen, (R * B, 1, 1, K); None: everywhere. For several passes two products
    over all of them take less time than a kernel call each.
    """
    passes, batch = keys.shape[:2]
    if passes == 1:
        return F.scaled_dot_product_attention(q, keys[0], values[0], attn_mask=keep_mask)
    scaled = (q * q.shape[-1] ** -0.5).expand(passes, -1, -1, -1, -1).flatten(0, 1)
    scores = scaled @ keys.flatten(0, 1).transpose(-2, -1)
    if keep_mask is not None:  # finite: the padding of a batch may see nothing
        scores.masked_fill_(~keep_mask, torch.finfo(scores.dtype).min)
    weights = scores.unflatten(0, (passes, batch)).movedim(0, -2).flatten(-2).softmax(-1)
    weights = weights.unflatten(-1, (passes, -1)).movedim(-2, 0).flatten(0, 1)
    return (weights @ values.flatten(0, 1)).unflatten(0, (passes, batch)).sum(0)


def without_gradients(device: torch.device) -> AbstractContextManager[Any]:
    """For the calls of one generation. On CPUs what it makes is no use to gradients, ever, which saves a
    tenth of a token's time; on GPUs masks and programs may be kept for a training.
    """
    return torch.inference_mode() if device.type == "cpu" else torch.no_grad()


class GenerationCache:
    """A Memory with a slot for each position, in every layer and pass.

    A token is kept in the slot of its position. Where it took no part in a pass, that pass has `nowhere` for
    its position, which no query sees; the padding of a batch is at `nowhere` too, and is written to a slot of
    its own behind the others.
    """

    positions: Tensor  # (B, S), of the tokens of this call

    def __init__(self, settings: ModelSettings, batch: int, length: int | None = None) -> None:
        """length: most tokens of a sequence (None: settings.sequence_length)."""
        self.settings, self.batch = settings, batch
        self.nowhere = settings.sequence_length if length is None else length
        # (stack, layer) -> keys and values, each (R, B, H, slots, Dh)
        self._keys_values: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._slot_positions: dict[str, Tensor] = {}  # stack -> positions (R, B, slots)
        self._views: dict[tuple[str, int, int | None], View] = {}
        self.length = self._before = 0
        self._in_order = False
        self._rope: Rope | None = None  # of all tokens of this call

    def begin(self, positions: Tensor, used: int, ragged: bool) -> None:
        """A call over tokens at positions (B, S); used: slots in use after it. ragged: sequences are at
        different positions.
        """
        self.positions, self._before, self.length = positions, self.length, used
        self._in_order = not (ragged or self.settings.variant.variable_tokens)
        self._views, self._rope = {}, None

    def _angles(self, planner: Planner, positions: Tensor) -> Rope | None:
        """As Planner.rope; those of all tokens of a call are computed once."""
        if positions is not self.positions:
            return planner.rope(positions)
        if self._rope is None:
            self._rope = planner.rope(positions)
        return self._rope

    def _repeats(self, stack: str) -> int:
        """Passes whose keys and values a stack keeps."""
        if stack == "h_mid" or (stack == "h_end" and self.settings.variant.exits_each_pass):
            return self.settings.n_repeat
        return 1

    def _store_positions(self, stack: str, pass_number: int, positions: Tensor) -> None:
        if stack not in self._slot_positions:
            shape = (self._repeats(stack), self.batch, self.nowhere + 1)
            self._slot_positions[stack] = positions.new_full(shape, self.nowhere)
        self._slot_positions[stack][pass_number - 1].scatter_(1, positions, positions)

    def _view(
        self, planner: Planner, stack: str, pass_number: int, positions: Tensor, window: int | None
    ) -> View:
        """What queries at positions (B, S) see in a pass whose positions are stored."""
        sees_earlier = stack == "h_mid" and self.settings.variant.attends == "all"
        passes = slice(0 if sees_earlier else pass_number - 1, pass_number)
        device, one_query = positions.device, positions.shape[1] == 1
        first = 0  # slot that some query sees
        if self._in_order and window is not None:
            first = max(0, self._before - window)
        in_order = self._in_order and (window is None or one_query)  # all slots from there on are seen
        slots = slice(first, self.length)
        slot_positions = self._slot_positions[stack][passes, :, slots]
        key_positions = tuple(slot_positions)
        kernel = choose_kernel(
            fast=self.settings.attention == "fast",
            one_query=one_query,
            dtype=planner.computes_in(device),
            # one query: a mask takes GPUs fewer launches
            flash_works=planner.is_fast(device, alike=in_order and not one_query),
        )
        if kernel is Kernel.MASK:
            return View(passes, slots, kernel, planner.plan(positions, list(key_positions), window))
        rope = self._angles(planner, positions)
        if kernel is Kernel.ONE_QUERY:
            keep_mask = None
            if not in_order:
                queries = positions.expand(len(key_positions), -1, -1).flatten(0, 1)
                keep_mask = visible(queries, slot_positions.flatten(0, 1), window)
            return View(passes, slots, kernel, AttentionPlan(rope), keep_mask)
        if self._in_order and not in_order:
            tiles = causal_tiles(positions, list(key_positions), window)
        else:
            ranges = []
            for pass_index in range(len(key_positions)):
                for keys, rule in key_ranges(in_order, one_query, self._before - first, self.length - first):
                    ranges.append(KeyRange(pass_index, keys, rule))
            tiles = (Tile(slice(None), tuple(ranges)),)
        return View(passes, slots, kernel, AttentionPlan(rope, tiles, positions, key_positions, window))

    def _keep(
        self, stored: tuple[Tensor, Tensor], new: Sequence[Tensor], pass_number: int, positions: Tensor
    ) -> None:
        """Put keys and values of this call, (B, H, S, Dh), into the slots of their positions."""
        for all_slots, of_call in zip(stored, new, strict=True):
            own = all_slots[pass_number - 1]
            if self._in_order:
                own[:, :, self._before : self.length].copy_(of_call)
            else:
                own.scatter_(2, positions[:, None, :, None].expand_as(of_call), of_call)

    def _run(
        self,
        planner: Planner,
        stack: Stack,
        layer: int,
        pass_number: int,
        x: Tensor,
        key_states: Tensor | None,
        positions: Tensor,
    ) -> Tensor:
        block, inputs, window = stack.blocks[layer], stack.inputs[layer], stack.windows[layer]
        if (stack.name, pass_number, window) not in self._views:
            self._store_positions(stack.name, pass_number, positions)
            view = self._view(planner, stack.name, pass_number, positions, window)
            self._views[stack.name, pass_number, window] = view
        view = self._views[stack.name, pass_number, window]
        x = block.enter(x, inputs)
        q, *new = block.project(x, key_states, view.plan.rope, inputs)
        stored = self._keys_values.get((stack.name, layer))
        if stored is None:
            heads, width = new[0].shape[1], new[0].shape[3]
            shape = (self._repeats(stack.name), self.batch, heads, self.nowhere + 1, width)
            stored = new[0].new_zeros(shape), new[1].new_zeros(shape)
            self._keys_values[stack.name, layer] = stored
        self._keep(stored, new, pass_number, positions)
        keys, values = [all_slots[view.passes, :, :, view.slots] for all_slots in stored]
        if view.kernel is Kernel.ONE_QUERY:
            sharing = q.reshape(self.batch, keys.shape[2], -1, q.shape[3])
            y = attend_from_one(sharing, keys, values, view.keep_mask).view_as(q)
        else:
            y = block.attn.attend(q, list(zip(keys, values, strict=True)), view.plan)
        return block.finish(x, y)

    def run_stack(
        self, planner: Planner, stack: Stack, pass_number: int, x: Tensor, positions: Tensor
    ) -> Tensor:
        """As Memory says; positions (B, T_r)."""
        for layer in range(len(stack.blocks)):
            x = self._run(planner, stack, layer, pass_number, x, None, positions)
        return x

    def run_block(
        self,
        planner: Planner,
        stack: Stack,
        layer: int,
        pass_number: int,
        x: Tensor,
        key_states: Tensor | None,
    ) -> Tensor:
        """As Memory says."""
        return self._run(planner, stack, layer, pass_number, x, key_states, self.positions)
