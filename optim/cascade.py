"""What router scores say about how deep a token goes: three ways to read them (section 5, Figure 5).

Legend: B batch, T positions, R passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CASCADES = ("raw", "position", "token")


def cascade(scores: Tensor, kind: str) -> Tensor:
    """Scores (B, T, R - 1) of every token after every pass but the last, in token order -> what a cascade makes of them.

    raw: as they are. token: the least score so far, since a token that a router has stopped never meets the next one.
    position: what the paper plots, the least score so far at each place of the authors' arrays. Their top-k leaves the
    tokens of a pass in the order of their scores, so a place holds different tokens in different passes.
    """
    if kind == "raw":
        return scores
    if kind == "token":
        return scores.cummin(dim=-1).values
    import torch

    order = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
    places = []
    for scored in scores.unbind(-1):
        here = scored.gather(1, order)
        places.append(here)
        order = order.gather(1, here.argsort(dim=1, descending=True, stable=True))
    return torch.stack(places, dim=-1).cummin(dim=-1).values
