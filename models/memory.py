"""Keys and values of the passes so far: the interface, and the one of whole sequences (models/cache.py has
the one of generation).

Legend: B batch, T positions, T_r tokens still active in pass r, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.attention import AttentionPlan, KeyValue
from models.layers import Block, LayerInputs
from models.planner import Planner
from models.settings import ModelSettings


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after the other: h, h_begin, h_mid or h_end.

    Of each block: windows, the furthest key behind a query (None: all are seen); inputs, what it takes in
    beside the output of the block before it, in this run (None: nothing).
    """

    name: str
    blocks: Sequence[Block]
    windows: Sequence[int | None]
    inputs: Sequence[LayerInputs | None]


class Memory(Protocol):
    """Runs blocks, and keeps the keys and values that later passes or later tokens see."""

    positions: Tensor  # of all tokens of this run, (B or 1, T)
    length: int  # tokens so far, those of this run included
    nowhere: int  # position of padding, beyond all others

    def run_stack(
        self, planner: Planner, stack: Stack, pass_number: int, x: Tensor, positions: Tensor
    ) -> Tensor:
        """A stack over x (B, T_r, D) at positions (B or 1, T_r), in a pass (1-based)."""

    def run_block(
        self,
        planner: Planner,
        stack: Stack,
        layer: int,
        pass_number: int,
        x: Tensor,
        key_states: Tensor | None,
    ) -> Tensor:
        """One block of a stack over all tokens x (B, T, D), which sees its own pass.

        key_states: what keys and values are made of, if not x.
        """


def recompute(settings: ModelSettings, work: Callable[..., Any], *inputs: Any, units: tuple[str, ...]) -> Any:
    """work(*inputs). Where --activation_checkpointing is one of the units, what its gradients need is
    computed again when they are due.
    """
    if not torch.is_grad_enabled() or settings.activation_checkpointing not in units:
        return work(*inputs)
    return checkpoint(work, *inputs, use_reentrant=False, preserve_rng_state=settings.dropout > 0)


class SequenceMemory:
    """Of one run over whole sequences: the middle layers see earlier passes, if they do in this model, all
    other layers their own pass.
    """

    def __init__(self, positions: Tensor, nowhere: int) -> None:
        """positions (1, T): of all tokens."""
        self.positions, self.length, self.nowhere = positions, positions.shape[1], nowhere
        self._own_pass: dict[int | None, AttentionPlan] = {}  # by window
        self._earlier: list[list[KeyValue]] | None = None  # per middle layer, of each pass
        self._key_positions: list[Tensor] = []

    def _own_plan(self, planner: Planner, window: int | None) -> AttentionPlan:
        """Of layers that see their own pass."""
        if window not in self._own_pass:
            self._own_pass[window] = planner.plan(self.positions, [self.positions], window, whole=True)
        return self._own_pass[window]

    def run_stack(
        self, planner: Planner, stack: Stack, pass_number: int, x: Tensor, positions: Tensor
    ) -> Tensor:
        """As Memory says."""
        settings = planner.settings
        sees_earlier = stack.name == "h_mid" and settings.variant.attends == "all"
        plans: dict[int | None, AttentionPlan]
        if sees_earlier:
            self._key_positions.append(positions)
            keys = self._key_positions
            plans = {w: planner.plan(positions, keys, w, whole=True) for w in set(stack.windows)}
        else:
            plans = {w: self._own_plan(planner, w) for w in stack.windows}
        earlier: list[list[KeyValue]] = [[] for _ in stack.blocks]
        if sees_earlier:
            earlier = self._earlier or earlier

        def run(x: Tensor) -> tuple[Tensor, list[KeyValue]]:
            made = []
            for layer, block in enumerate(stack.blocks):
                plan = plans[stack.windows[layer]]
                given = x, None, earlier[layer], plan, stack.inputs[layer]
                x, own = recompute(settings, block, *given, units=("block",))
                made.append(own)
            return x, made

        x, made = cast(tuple[Tensor, list[KeyValue]], recompute(settings, run, x, units=("pass",)))
        if sees_earlier:
            self._earlier = [[*past, own] for past, own in zip(earlier, made, strict=True)]
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
        """As Memory says. The block is the unit of activation checkpointing, also where a pass is asked."""
        block = stack.blocks[layer]
        plan = self._own_plan(planner, stack.windows[layer])
        given = x, key_states, list[KeyValue](), plan, stack.inputs[layer]
        return cast(Tensor, recompute(planner.settings, block, *given, units=("block", "pass"))[0])
