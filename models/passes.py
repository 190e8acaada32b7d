"""The repeated part of the transformer: its blocks, the depth embedding before a pass, the norm after it.

Legend: B batch, T positions, T_r tokens still active in pass r, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import DepthEmbedding
from models.memory import Memory, Stack
from models.planner import Planner
from models.settings import ModelSettings


@dataclass(frozen=True)
class Passes:
    """One run. stack: as Transformer._stack, of a name, a pass and columns. gates: what scores tokens after a
    pass: a router for each pass but the last, a linear map for each pass, or one gate for all passes, as the
    model's policy has it.
    """

    settings: ModelSettings
    training: bool
    stack: Callable[..., Stack]
    depth_embedding: DepthEmbedding | None
    norm: nn.Module | None
    gates: Sequence[nn.Module]
    planner: Planner
    memory: Memory

    @property
    def positions(self) -> Tensor:
        """Of all tokens, (B or 1, T)."""
        return self.memory.positions

    @property
    def pass_numbers(self) -> range:
        """Of the passes, from 1."""
        return range(1, self.settings.n_repeat + 1)

    def is_last(self, pass_number: int) -> bool:
        return pass_number == self.settings.n_repeat

    def middle(
        self, pass_number: int, x: Tensor, positions: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """A pass over x (B, T_r, D) at positions (B or 1, T_r), in columns (B, T_r) of the sequences; None
        for all tokens.
        """
        x = self._with_depth(pass_number, x)
        where = self.positions if positions is None else positions
        stack = self.stack("h_mid", pass_number, columns)
        return self._normed(self.memory.run_stack(self.planner, stack, pass_number, x, where))

    def middle_by_block(
        self,
        pass_number: int,
        x: Tensor,
        keep_mask: Tensor | None = None,
        key_states: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """A pass over all tokens x (B, T, D), block by block.

        keep_mask (B, T): after each block, tokens outside it have the state they came with. key_states: of a
        block's input, what its keys and values are made of (None: the input).
        """
        x_in, stack = x, self.stack("h_mid", pass_number)
        x = self._with_depth(pass_number, x)
        for layer in range(len(stack.blocks)):
            states = None if key_states is None else key_states(x)
            x = self.memory.run_block(self.planner, stack, layer, pass_number, x, states)
            if keep_mask is not None:
                x = torch.where(keep_mask.unsqueeze(-1), x, x_in)
        return self._normed(x)

    def end(self, x: Tensor, pass_number: int = 1) -> Tensor:
        """The last layers over all tokens x (B, T, D); pass_number: of the pass whose exit they are."""
        stack = self.stack("h_end", pass_number)
        return self.memory.run_stack(self.planner, stack, pass_number, x, self.positions)

    def _with_depth(self, pass_number: int, x: Tensor) -> Tensor:
        if self.depth_embedding is None:
            return x
        return self.depth_embedding(x, self.settings.n_repeat - pass_number)

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)
