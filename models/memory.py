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

from models.attention import KeyValue
from models.layers import Block
from models.planner import Planner
from models.settings import ModelSettings


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after the other: h, h_begin, h_mid or h_end."""

    name: str
    blocks: Sequence[Block]


class Memory(Protocol):
    """Runs blocks, and keeps the keys and values that later passes or later tokens see."""

    positions: Tensor  # of all tokens of this run, (B or 1, T)

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

    def __init__(self, planner: Planner, positions: Tensor) -> None:
        """positions (1, T): of all tokens."""
        self.positions = positions
        self._own_pass = planner.plan(positions, [positions])
        self._earlier: list[list[KeyValue]] | None = None  # per middle layer, of each pass
        self._key_positions: list[Tensor] = []

    def run_stack(
        self, planner: Planner, stack: Stack, pass_number: int, x: Tensor, positions: Tensor
    ) -> Tensor:
        """As Memory says."""
        settings = planner.settings
        sees_earlier = stack.name == "h_mid" and settings.variant.attends == "all"
        plan = self._own_pass
        earlier: list[list[KeyValue]] = [[] for _ in stack.blocks]
        if sees_earlier:
            self._key_positions.append(positions)
            plan = planner.plan(positions, self._key_positions)
            earlier = self._earlier or earlier

        def run(x: Tensor) -> tuple[Tensor, list[KeyValue]]:
            made = []
            for block, past in zip(stack.blocks, earlier, strict=True):
                x, own = recompute(settings, block, x, None, past, plan, units=("block",))
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
        units = ("block", "pass")
        return cast(
            Tensor, recompute(planner.settings, block, x, key_states, [], self._own_pass, units=units)[0]
        )
