"""How many tokens, or tokens of which scores, go on after each pass of a model with routers."""

from __future__ import annotations

import numpy as np
import torch

from models.settings import ModelSettings


def tokens_kept(share: float, active: int, in_float32: bool) -> int:
    """How many of the active tokens go on. in_float32: multiply in single precision, as Variant says."""
    if in_float32:
        return int(np.float32(active) * np.float32(share))
    return int(share * active)


def capacities(factors: list[float]) -> list[float]:
    """Shares of all tokens -> shares of those still active."""
    shares, before = [], 1.0
    for after in factors:
        shares.append(after / before if before else 0.0)
        before = after
    return shares


def length_factors(settings: ModelSettings, training: bool) -> list[float]:
    """Shares of the tokens that go on after each pass but the last, for one forward pass."""
    given = settings.training_length_factor if training else settings.eval_length_factor
    if given is not None:
        return list(given)
    if not training:
        return [1.0] * (settings.n_repeat - 1)
    return draw_length_factors(settings.depth_random_method, settings.n_repeat - 1)


def thresholds(settings: ModelSettings, training: bool) -> list[float] | None:
    """Scores above which a token goes on after each pass but the last; None where capacities decide, as in
    training.
    """
    if training or settings.routing == "capacity":
        return None
    given = settings.router_threshold or (0.5,)
    if len(given) == 1:
        return list(given) * (settings.n_repeat - 1)
    return list(given)


def draw_length_factors(method: str, n: int) -> list[float]:
    """n non-increasing shares in [0, 1] from torch's CPU generator, one draw for each forward in training."""
    reach = {
        "pick_mid_and_recurse": 1.05,
        "pick_mid_and_recurse_more_chance_for_one": 1.5,
        "pick_mid_and_recurse_more_chance_for_one_even_more": 2.0,
    }
    if method in reach:

        def between(count: int, low: float, high: float) -> list[float]:
            if count == 0:
                return []
            middle = torch.clamp(torch.rand(1) * reach[method], max=1).item() * (high - low) + low
            above = (count - 1) // 2
            return [*between(above, middle, high), middle, *between(count - 1 - above, low, middle)]

        return between(n, 0.0, 1.0)
    if method == "exponential_decay":
        return (torch.clamp(torch.rand(1) * 1.05, max=1) ** torch.arange(1, n + 1)).tolist()
    if method == "at_least_10percent":
        return (torch.clamp(torch.rand(1) * 0.95 + 0.1, max=1) ** torch.arange(1, n + 1)).tolist()
    draws = torch.rand(n) * 1.1 - 0.05 if method == "more_chance_for_zero_too" else torch.rand(n) * 1.05
    return torch.clamp(draws, min=0, max=1).sort(descending=True).values.tolist()
