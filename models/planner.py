"""What the queries of a pass see, and by which way attention computes it.

Legend: B batch, T positions of queries, K_r keys of pass r.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    of the weights; training: dropout is on; sequences: of the run.
    """

    settings: ModelSettings
    rotary: nn.Module | None
    dtype: torch.dtype
    training: bool
    sequences: int

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

    def is_flexible(self, positions: Tensor, key_positions: Sequence[Tensor]) -> bool:
        """Whether FlexAttention takes the place of a dense mask; positions as `plan` takes them."""
        return self.wants_fast and self._block_trouble(positions, key_positions) is None

    def _block_trouble(self, positions: Tensor, key_positions: Sequence[Tensor]) -> str | None:
        settings, device = self.settings, positions.device
        shared = settings.n_head // settings.kv_heads
        form = BlockForm.of(positions, key_positions, self.sequences, shared)
        return block_trouble(device, self.computes_in(device), settings.head_width, form)

    def _in_tiles(self, window: int | None, device: torch.device) -> bool:
        """Whether window_tiles can be had for whole sequences; not for the windows of published blocks, whose
        trainings resume to the same bits.
        """
        if window is None or window < TILE or not self.settings.is_modern:
            return False
        return self.is_fast(device, alike=True, in_window=True)

    def _needs_blocks(self, device: torch.device) -> bool:
        """Whether a training has passes that neither flash attention nor plain causal order can do."""
        settings = self.settings
        windows: list[int | None] = [settings.attention_window_length]
        if settings.is_modern:  # one that all keys are within is none
            windows = [each for each in settings.windows if each < settings.sequence_length - 1]
        without_tiles = [each for each in windows if each is not None and not self._in_tiles(each, device)]
        joins = settings.variant.attends == "all" and settings.n_repeat > 1
        is_slow = joins and not self.is_fast(device, alike=True)
        return settings.variant.variable_tokens or bool(without_tiles) or is_slow

    def describe_slow(self, device: torch.device) -> list[str]:
        """Lines about ways that this device does not have, so that the reference takes their place in a
        training.
        """
        if device.type == "cpu" or not self.wants_fast or not self._needs_blocks(device):
            return []
        settings = self.settings
        rows = self.sequences if settings.variant.variable_tokens else 1
        positions = torch.zeros(rows, settings.sequence_length, device=device)
        trouble = self._block_trouble(positions, [positions])
        if trouble is None:
            return []
        flash = flash_trouble(device, self.computes_in(device), settings.head_width)
        if flash is not None:
            more = "" if flash == trouble else f", nor FlexAttention ({trouble})"
            return [f"note: no flash attention ({flash}){more}: attention is the reference"]
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
        if whole and same and window is not None and self._in_tiles(window, device):
            return AttentionPlan(rope, window_tiles(positions.shape[1], window, len(key_positions)))
        if self.is_fast(device, alike):
            tiles = causal_tiles(positions, key_positions, window)
            return AttentionPlan(rope, tiles, positions, tuple(key_positions), window)
        if self.is_flexible(positions, key_positions):
            from models.flex import block_mask, whole_block_mask

            if whole and same and positions.shape[1] == self.settings.sequence_length:
                blocks = whole_block_mask(positions.shape[1], window, len(key_positions), device)
            else:
                blocks = block_mask(positions, key_positions, window)
            return AttentionPlan(rope, blocks=blocks)
        batch = max(own.shape[0] for own in key_positions)
        all_keys = torch.cat([own.expand(batch, -1) for own in key_positions], dim=-1)
        return AttentionPlan(rope, mask=visible(positions, all_keys, window))
