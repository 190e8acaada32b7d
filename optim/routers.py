"""Router scores of an adaptive model over a split, at full compute: every token is scored after every
pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import TokenWindows
from distributed.world import World
from errors import UserError
from models.macs import count_macs
from models.settings import ModelSettings
from models.transformer import Transformer
from optim.cascade import cascade

BISECTIONS = 40


def need_routers(model: Transformer) -> None:
    """Raises UserError for a model that routes no tokens."""
    if not model.settings.variant.routes or model.settings.n_repeat == 1:
        raise UserError(
            f"{model.settings.model} routes no tokens; this is for adaptive models (adm, but_mod)"
        )


def set_factors(model: Transformer, factors: list[float]) -> None:
    """Route by capacity, with these shares of the tokens going on."""
    model.settings = dataclasses.replace(
        model.settings, routing="capacity", eval_length_factor=tuple(factors)
    )


@torch.no_grad()
def router_scores(
    model: Transformer,
    windows: TokenWindows,
    chosen: np.ndarray,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
) -> Iterator[Tensor]:
    """Scores (B, T, R - 1) float32 in token order, batch by batch over the chosen windows, on the CPU."""
    set_factors(model, [1.0] * (model.settings.n_repeat - 1))
    for first in range(0, len(chosen), batch_size):
        batch = windows.batch(chosen[first : first + batch_size]).to(device)
        with autocast():
            routed = model.run(batch["inputs"]).routing
        assert routed is not None, "need_routers() has been asked"
        by_token = [
            torch.zeros_like(scores, dtype=torch.float32).scatter(1, positions, scores.float())
            for positions, scores in routed
        ]
        yield torch.stack(by_token, dim=-1).cpu()


def factors_at(
    model: Transformer,
    windows: TokenWindows,
    chosen: np.ndarray,
    batch_size: int,
    cuts: list[float],
    autocast: Callable[[], AbstractContextManager[Any]],
    world: World,
    published: bool = False,
) -> list[list[float]]:
    """For each cut, the share of the tokens whose scores after each pass so far have reached it: the
    capacities of the passes.

    Processes share the windows. Cut 0 lets every token go on. published: shares as the authors' code has
    them: of the lowest scores by place after the device's top-k, and rounded.
    """
    counts = torch.zeros(len(cuts), model.settings.n_repeat - 1, dtype=torch.float64)
    for scores in router_scores(
        model, windows, chosen[world.rank :: world.size], batch_size, autocast, world.device
    ):
        counts += reaching(scores.to(world.device), cuts, "device" if published else "token").cpu()
    shares = world.sum(counts) / (len(chosen) * windows.length)
    factors: list[list[float]] = shares.tolist()
    if published:
        factors = [list(map(rounded, of_cut)) for of_cut in factors]
    return factors


def reaching(scores: Tensor, cuts: list[float], kind: str) -> Tensor:
    """How many of the scores (B, T, R - 1), by a cascade, are at each cut or above, after each pass:
    (cuts, R - 1) float64.
    """
    least = cascade(scores, kind).double()  # a cut is no float32
    return torch.stack([(least >= cut).sum((0, 1)) for cut in cuts]).double()


def rounded(share: float) -> float:
    """A capacity as the authors' program passes it to their evaluation: up to a whole token of 256, then to
    two decimals.
    """
    return round(math.ceil(share * 256) / 256, 2)


def threshold_for(budget: float, settings: ModelSettings, scores: Tensor) -> float:
    """The score that tokens must exceed so that a sequence costs this share of the multiply-accumulates of
    full depth.

    scores (N, R - 1): of a sample of tokens, the lowest so far after each pass. Raises UserError where one
    pass costs more.
    """

    def cost(threshold: float) -> float:
        return share_of_macs(settings, (scores > threshold).double().mean(0).tolist())

    if cost(1.0) > budget:
        raise UserError(
            f"--budget {budget:g}: one pass alone costs {cost(1.0):.2f} of full depth; ask for more"
        )
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > budget else (low, middle)
    return high


def share_of_macs(settings: ModelSettings, shares: list[float]) -> float:
    """Multiply-accumulates of a sequence in which these shares of the tokens go on after each pass, relative
    to full depth.
    """
    length = settings.sequence_length
    return count_macs(settings, length, shares) / count_macs(settings, length, [1.0] * len(shares))
