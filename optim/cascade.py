"""What router scores say about how deep a token goes: four ways to read them (section 5, Figure 5).

Legend: B batch, T positions, R passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CASCADES = ("raw", "position", "sorted", "token")


def cascade(scores: Tensor, kind: str) -> Tensor:
    """Scores (B, T, R - 1) of every token after every pass but the last, in token order -> what a cascade makes of them.

    raw: as they are. token: the least score so far, since a token that a router has stopped never meets the next one.
    position, sorted: the least score so far at each place of the authors' arrays, not in token order. After each pass their
    top-k puts all tokens into another order, so a place holds different tokens in different passes. position: the order in
    which the unsorted top-k of this device leaves them, which is what the authors' code gives; sorted: by falling scores.
    """
    if kind == "raw":
        return scores
    if kind == "token":
        return scores.cummin(dim=-1).values
    import torch

    order = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
    places = []
    for scored in scores.unbind(-1):
        # in the authors' layout (B, T, 1): the order that is left depends on it
        top = scored.gather(1, order).unsqueeze(-1).topk(scores.shape[1], dim=1, sorted=kind == "sorted")
        places.append(top.values.squeeze(-1))
        order = order.gather(1, top.indices.squeeze(-1))
    return torch.stack(places, dim=-1).cummin(dim=-1).values
