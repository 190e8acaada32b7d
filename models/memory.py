"""Keys and values: what the blocks of a pass see, and what is kept for later passes.

Legend: B batch, T positions, T_r tokens still active in pass r, D model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from models.attention import KeyValue

if TYPE_CHECKING:
    from models.transformer import Transformer


class Memory:
    """Of one forward pass over whole sequences: the middle layers see earlier passes, if they do in this model, all else itself."""

    def __init__(self, model: Transformer, everyone: Tensor) -> None:
        """everyone: positions (1, T) of all tokens."""
        self.model, self.everyone = model, everyone
        self.here = model.positions(everyone, [everyone])
        self.past: list[list[KeyValue]] = [[] for _ in model.blocks("h_mid")] if model.settings.row.attends == "all" else []
        self.positions: list[Tensor] = []

    def run(self, stack: str, number: int, x: Tensor, positions: Tensor) -> Tensor:
        """A stack's blocks over x (B, T_r, D) at positions (1 or B, T_r), in a pass (1-based)."""
        if stack != "h_mid" or not self.past:
            return self.model.one_pass(stack, x, [[] for _ in self.model.blocks(stack)], self.here)[0]
        self.positions.append(positions)
        x, made = self.model.one_pass(stack, x, self.past, self.model.positions(positions, self.positions))
        self.past = [[*past, own] for past, own in zip(self.past, made, strict=True)]
        return x

    def run_block(self, layer: int, number: int, x: Tensor, x_keys: Tensor | None) -> Tensor:
        """One middle block over all tokens x (B, T, D) in a pass; x_keys: what keys and values are made of, if not x."""
        return self.model.remade(self.model.blocks("h_mid")[layer], x, x_keys, [], self.here, unit="block")[0]
