"""What the queries of a pass see, and by which way attention computes it.

Legend: B batch, T positions of queries, K_r keys of pass r.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.attention import TILE, AttentionPlan, Rope, causal_tiles, visible, window_tiles
from models.precision import computing_dtype
from models.settings import ModelSettings
from models.trials import BlockForm, block_trouble, flash_trouble


@dataclass(frozen=True)
class Planner:
    """Makes the plans of one run. rotary: angles of positions, None where positions are not encoded; dtype:
    of the weights; training: dropout is on.
    """

    settings: ModelSettings
    rotary: nn.Module | None
    dtype: torch.dtype
    training: bool

    def rope(self, positions: Tensor) -> Rope | None:
        """Angles of positions (B or 1, T); None where positions are not encoded."""
        return None if self.rotary is None else self.rotary(positions)

    def computes_in(self, device: torch.device) -> torch.dtype:
        """The dtype of attention: the autocast's, or that of the weights."""
        return computing_dtype(device, self.dtype)

    @property
    def wants_fast(self) -> bool:
        """Whether another way than the reference may be taken at all."""
        is_dropping = self.training and self.settings.dropout > 0
        return self.settings.attention != "reference" and not is_dropping

    def is_fast(self, device: torch.device, alike: bool, in_window: bool = False) -> bool:
        """Whether attention may go pass by pass, or through window_tiles. alike: all passes are of the same
        tokens; GPUs' kernels take no mask.
        """
        if not self.wants_fast or (device.type != "cpu" and not alike):
            return False
        dtype = self.computes_in(device)
        return flash_trouble(device, dtype, self.settings.head_width, in_window) is None

    def is_flexible(self, positions: Tensor) -> bool:
        """Whether FlexAttention takes the place of a dense mask, for queries at positions (B or 1, T)."""
        return self.wants_fast and self._block_trouble(positions) is None

    def _block_trouble(self, positions: Tensor) -> str | None:
        settings, device = self.settings, positions.device
        form = BlockForm.of(positions, settings.n_head // settings.kv_heads)
        return block_trouble(device, self.computes_in(device), settings.head_width, form)

    def describe_slow(self, device: torch.device) -> list[str]:
        """Lines about ways that this device does not have, so that the reference takes their place."""
        settings = self.settings
        if not self.wants_fast:
            return []
        trouble = flash_trouble(device, self.computes_in(device), settings.head_width)
        if trouble is not None:
            return [f"note: no flash attention pass by pass ({trouble}): attention is the reference"]
        leave = settings.variant.variable_tokens or settings.attention_window_length is not None
        if device.type == "cpu" or not leave:
            return []
        trouble = self._block_trouble(torch.zeros(1, settings.sequence_length, device=device))
        if trouble is None:
            return []
        return [
            f"note: no FlexAttention ({trouble}): attention of fewer tokens, or in a window, is the reference"
        ]

    def plan(
        self, positions: Tensor, key_positions: list[Tensor], window: int | None, whole: bool = False
    ) -> AttentionPlan:
        """For queries at positions (B or 1, T) and keys at the passes' (B or 1, K_r) positions. whole: where
        all of these are the same, they are (1, T) and count from 0.
        """
        rope, device = self.rope(positions), positions.device
        same = all(own is positions for own in key_positions)
        alike = same and window is None
        if alike and len(key_positions) == 1:
            return AttentionPlan(rope)
        # a window of published blocks keeps its tiles: trainings resume to the same bits
        in_window = whole and same and window is not None and window >= TILE and self.settings.is_modern
        if in_window and window is not None and self.is_fast(device, alike=True, in_window=True):
            return AttentionPlan(rope, window_tiles(positions.shape[1], window, len(key_positions)))
        if self.is_fast(device, alike):
            tiles = causal_tiles(positions, key_positions, window)
            return AttentionPlan(rope, tiles, positions, tuple(key_positions), window)
        if self.is_flexible(positions):
            from models.flex import block_mask, whole_block_mask

            if whole and same:
                blocks = whole_block_mask(positions.shape[1], window, len(key_positions), device)
            else:
                blocks = block_mask(positions, key_positions, window)
            return AttentionPlan(rope, blocks=blocks)
        batch = max(own.shape[0] for own in key_positions)
        all_keys = torch.cat([own.expand(batch, -1) for own in key_positions], dim=-1)
        return AttentionPlan(rope, mask=visible(positions, all_keys, window))
