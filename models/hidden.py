"""What a run of the transformer gives before its head.

Legend: B batch, T positions, T_r tokens still active in pass r, R passes, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Exits:
    """An exit after every pass, and what weighs them in the loss.

    states (B, R, T, D) before the last norm; halting (B, R, T): probability of leaving at a pass, for a token
    that has not left before. prior: the same probability of the geometric prior; divergence_weight: of the
    divergence from it.
    """

    states: Tensor
    halting: Tensor
    prior: float
    divergence_weight: float


@dataclass(frozen=True)
class Hidden:
    """states (B, T, D) before the last norm.

    passes: middle passes per token, on average (scalar).
    exits: in training, of models whose loss is an expectation over the exits of all passes.
    penalty: scalar to be added to the loss, where the model has one in training.
    active: of routed models, tokens of a sequence that take part in each pass, on average.
    routing: of routed models, positions and scores (B, T_r) of each routed pass.
    """

    states: Tensor
    passes: Tensor
    exits: Exits | None = None
    penalty: Tensor | None = None
    active: list[float] | None = None
    routing: list[tuple[Tensor, Tensor]] | None = None
