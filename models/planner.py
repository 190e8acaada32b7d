"""What the queries of a pass see, and by which way attention computes it.

Legend: B batch, T positions of queries, K_r keys of pass r.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.attention import TILE, AttentionPlan, causal_tiles, flash_works, visible, window_tiles
from models.precision import computing_dtype
from models.settings import ModelSettings


@dataclass(frozen=True)
class Planner:
    """Makes the plans of one run. rotary: angles of positions, None where positions are not encoded; dtype:
    of the weights; training: dropout is on.
    """

    settings: ModelSettings
    rotary: nn.Module | None
    dtype: torch.dtype
    training: bool

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Angles of positions (B or 1, T); None where positions are not encoded."""
        return None if self.rotary is None else self.rotary(positions)

    def computes_in(self, device: torch.device) -> torch.dtype:
        """The dtype of attention: the autocast's, or that of the weights."""
        return computing_dtype(device, self.dtype)

    def is_fast(self, device: torch.device, alike: bool, in_window: bool = False) -> bool:
        """Whether attention may go pass by pass, or through window_tiles. alike: all passes are of the same
        tokens; GPUs' kernels take no mask.
        """
        if self.settings.attention == "reference" or (self.training and self.settings.dropout > 0):
            return False
        if device.type != "cpu" and not alike:
            return False
        return flash_works(device, self.computes_in(device), self.settings.head_width, in_window)

    def plan_whole(self, positions: Tensor, passes: int, window: int | None) -> AttentionPlan:
        """For whole sequences, at positions (1, T) from 0 on, that see themselves in so many passes."""
        # a window of published blocks keeps its tiles: trainings resume to the same bits
        if (
            window is not None
            and window >= TILE
            and self.settings.is_modern
            and self.is_fast(positions.device, alike=True, in_window=True)
        ):
            return AttentionPlan(self.rope(positions), window_tiles(positions.shape[1], passes, window))
        return self.plan(positions, [positions] * passes, window)

    def plan(self, query_positions: Tensor, key_positions: list[Tensor], window: int | None) -> AttentionPlan:
        """For queries at (B or 1, T) positions and keys at the passes' (B or 1, K_r) positions."""
        rope = self.rope(query_positions)
        alike = window is None and all(positions is query_positions for positions in key_positions)
        if alike and len(key_positions) == 1:
            return AttentionPlan(rope)
        if self.is_fast(query_positions.device, alike):
            return AttentionPlan(
                rope,
                causal_tiles(query_positions, key_positions, window),
                query_positions,
                tuple(key_positions),
                window,
            )
        batch = max(positions.shape[0] for positions in key_positions)
        all_keys = torch.cat([positions.expand(batch, -1) for positions in key_positions], dim=-1)
        return AttentionPlan(rope, mask=visible(query_positions, all_keys, window))
