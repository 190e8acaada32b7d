"""Router scores of an adaptive model over a split, at full compute: every token is scored after every
pass.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import TokenWindows
from data.batch import Batch
from distributed.world import World
from errors import UserError
from models.macs import count_macs
from models.settings import ModelSettings
from models.transformer import Transformer
from optim.cascade import cascade

BISECTIONS = 40
# of measuring times: at least, at most, and how long more than the least go on
ROUNDS, MOST_ROUNDS, ROUNDS_SECONDS = 7, 50, 3.0


def need_routers(model: Transformer) -> None:
    """Raises UserError for a model that routes no tokens."""
    if not model.settings.variant.routes or model.settings.n_repeat == 1:
        raise UserError(
            f"{model.settings.model} routes no tokens; this is for adaptive models (adm, but_mod)"
        )


def by_capacity(settings: ModelSettings, factors: Sequence[float]) -> ModelSettings:
    """Routing by capacity, with these shares of the tokens going on."""
    return dataclasses.replace(settings, routing="capacity", eval_length_factor=tuple(factors))


def by_threshold(settings: ModelSettings, threshold: float) -> ModelSettings:
    """Routing by threshold, where tokens with higher scores go on."""
    return dataclasses.replace(settings, routing="threshold", router_threshold=(threshold,))


def set_factors(model: Transformer, factors: list[float]) -> None:
    """Route by capacity, with these shares of the tokens going on."""
    model.settings = by_capacity(model.settings, factors)


@torch.no_grad()
def least_seconds(
    model: Transformer,
    batches: Sequence[Batch],
    settings: Sequence[ModelSettings],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> list[float]:
    """For each of several settings, seconds for these batches: the least of several rounds in which the
    settings take turns.

    Other work on the machine only adds to a time, and slow phases affect all settings alike.
    """
    device = batches[0]["inputs"].device
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    least = [math.inf] * len(settings)
    enough = time.perf_counter() + ROUNDS_SECONDS
    for round_number in range(MOST_ROUNDS + 1):
        if round_number > ROUNDS and time.perf_counter() > enough:
            break
        for number, chosen in enumerate(settings):
            model.settings = chosen
            wait()
            begin = time.perf_counter()
            for batch in batches:
                with autocast():
                    model(batch["inputs"], targets=batch["targets"])
            wait()
            if round_number:  # the first round warms up
                least[number] = min(least[number], time.perf_counter() - begin)
    return least


@torch.no_grad()
def shares_going_on(
    model: Transformer,
    windows: TokenWindows,
    chosen: np.ndarray,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
) -> list[float]:
    """Of all tokens of the chosen windows, those that take each pass after the first, as the model routes
    now.
    """
    taken = [0.0] * model.settings.n_repeat
    for first in range(0, len(chosen), batch_size):
        batch = windows.batch(chosen[first : first + batch_size]).to(device)
        with autocast():
            active = model.run(batch["inputs"]).active
        assert active is not None, "need_routers() has been asked"
        for number, count in enumerate(active):  # fewer, where no token goes on
            taken[number] += count * len(batch["inputs"])
    return [count / (len(chosen) * windows.length) for count in taken[1:]]


def whole_tokens(shares: Sequence[float], length: int) -> list[float]:
    """Capacities that keep the nearest number of the tokens of a sequence: models round down, so each has
    half a token to spare.
    """
    return [min(1.0, (round(share * length) + 0.5) / length) for share in shares]


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
