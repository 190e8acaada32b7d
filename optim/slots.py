"""Keys and values of all tokens so far, for generation: a new token is all that is computed.

Legend: B batch, S tokens of one call, R passes, H heads, D model width, Dh head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import Positions, Seen, Tile, visible
from models.policies import Memory
from models.transformer import Block, Transformer


@dataclass(frozen=True)
class View:
    """What the queries of one call see in the layers of a pass: slots up to `used` of `passes`.

    lone: `attend_from_one` does it; then `at` has the angles alone, and pairs is True where a key is seen, (R
    * B, 1, 1, used), or None for everywhere.
    """

    passes: slice
    at: Positions
    lone: bool = False
    pairs: Tensor | None = None


def attend_from_one(q: Tensor, keys: Tensor, values: Tensor, pairs: Tensor | None) -> Tensor:
    """The query of one token, (B, H, 1, Dh), over keys and values of R passes, each (R, B, H, K, Dh) -> (B,
    H, 1, Dh).

    pairs: True where a key is seen, (R * B, 1, 1, K); None: everywhere. For several passes two products over
    all of them take less time than a kernel call each. For float32: kernels keep the scores of half precision
    in float32, products would round them.
    """
    passes, batch = keys.shape[:2]
    if passes == 1:
        return F.scaled_dot_product_attention(q, keys[0], values[0], attn_mask=pairs)
    asked = (q * q.shape[-1] ** -0.5).expand(passes, -1, -1, -1, -1).flatten(0, 1)
    scores = asked @ keys.flatten(0, 1).transpose(-2, -1)
    if pairs is not None:  # finite: what fills up a batch may see nothing
        scores.masked_fill_(~pairs, torch.finfo(scores.dtype).min)
    weights = scores.unflatten(0, (passes, batch)).movedim(0, -2).flatten(-2).softmax(-1)
    weights = weights.unflatten(-1, (passes, -1)).movedim(-2, 0).flatten(0, 1)
    return (weights @ values.flatten(0, 1)).unflatten(0, (passes, batch)).sum(0)


class Slots(Memory):
    """A slot for each position, in every layer and pass.

    A token stands in the slot of its position. Where it took no part in a pass, that pass has `nowhere` for
    its position, which no query sees; what fills up a batch stands nowhere too, and is written to a slot of
    its own behind the others.
    """

    def __init__(self, model: Transformer, batch: int) -> None:
        self.model, self.batch = model, batch
        self.nowhere = model.settings.sequence_length
        # (stack, layer) -> keys and values, each (R, B, H, slots, Dh)
        self.kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.places: dict[str, Tensor] = {}  # stack -> positions (R, B, slots)
        self.views: dict[tuple[str, int], View] = {}
        self.before = self.used = 0

    def begin(self, positions: Tensor, used: int, ragged: bool) -> None:
        """A call over tokens at positions (B, S); used: slots in use after it. ragged: rows stand at
        different positions.
        """
        self.everyone, self.before, self.used = positions, self.used, used
        settings = self.model.settings
        self.plain = (
            not ragged and settings.attention_window_length is None and settings.row.policy != "compact"
        )
        self.views = {}

    def _repeats(self, stack: str) -> int:
        settings = self.model.settings
        return (
            settings.n_repeat
            if stack == "h_mid" or (stack == "h_end" and settings.row.policy == "ponder")
            else 1
        )

    def _view(self, stack: str, number: int, positions: Tensor) -> View:
        """What queries at positions (B, S) see in a pass; puts them in their places first."""
        if (stack, number) in self.views:
            return self.views[stack, number]
        model, settings = self.model, self.model.settings
        if stack not in self.places:
            self.places[stack] = positions.new_full(
                (self._repeats(stack), self.batch, self.nowhere + 1), self.nowhere
            )
        self.places[stack][number - 1].scatter_(1, positions, positions)
        passes = slice(0 if stack == "h_mid" and settings.row.attends == "all" else number - 1, number)
        places, window = self.places[stack][passes, :, : self.used], settings.attention_window_length
        keys = tuple(places)
        single = positions.shape[1] == 1
        if settings.attention == "fast" and single and model.computes_in(positions.device) == torch.float32:
            pairs = (
                None
                if self.plain
                else visible(positions.expand(len(keys), -1, -1).flatten(0, 1), places.flatten(0, 1), window)
            )
            view = View(passes, Positions(model.rope(positions)), lone=True, pairs=pairs)
        elif model.is_fast(
            positions.device, alike=self.plain and not single
        ):  # one query: a mask takes GPUs fewer launches
            parts = [(slice(None), "all" if self.plain else "positions")]
            if self.plain and not single:
                parts = [(slice(self.before), "all"), (slice(self.before, self.used), "causal")][
                    self.before == 0 :
                ]
            seen = tuple(Seen(turn, part, how) for turn in range(len(keys)) for part, how in parts)
            view = View(
                passes, Positions(model.rope(positions), (Tile(slice(None), seen),), positions, keys, window)
            )
        else:
            view = View(passes, model.positions(positions, list(keys)))
        self.views[stack, number] = view
        return view

    def _block(
        self, stack: str, layer: int, number: int, x: Tensor, x_keys: Tensor | None, positions: Tensor
    ) -> Tensor:
        view, block = self._view(stack, number, positions), cast(Block, self.model.blocks(stack)[layer])
        q, *made = block.project(x, x_keys, view.at.rope)
        if (stack, layer) not in self.kept:
            shape = (self._repeats(stack), self.batch, q.shape[1], self.nowhere + 1, q.shape[3])
            self.kept[stack, layer] = made[0].new_zeros(shape), made[1].new_zeros(shape)
        slots = positions[:, None, :, None].expand_as(made[0])
        for kept, new in zip(self.kept[stack, layer], made, strict=True):
            kept[number - 1].scatter_(2, slots, new)
        keys, values = (kept[view.passes, :, :, : self.used] for kept in self.kept[stack, layer])
        y = (
            attend_from_one(q, keys, values, view.pairs)
            if view.lone
            else block.attn.attend(q, list(zip(keys, values, strict=True)), view.at)
        )
        return block.finish(x, y)

    def run(self, stack: str, number: int, x: Tensor, positions: Tensor) -> Tensor:
        """As Memory.run; positions (B, T_r)."""
        for layer in range(len(self.model.blocks(stack))):
            x = self._block(stack, layer, number, x, None, positions)
        return x

    def run_block(self, layer: int, number: int, x: Tensor, x_keys: Tensor | None) -> Tensor:
        """As Memory.run_block."""
        return self._block("h_mid", layer, number, x, x_keys, self.everyone)
