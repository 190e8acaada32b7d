"""What router scores say about how deep a token goes: four ways to read them (section 5, Figure 5;
iridis/eval-adm/README.md).

Legend: B batch, T positions, R passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CASCADES = ("raw", "device", "position", "token")


def cascade(scores: Tensor, kind: str) -> Tensor:
    """Scores (B, T, R - 1) of every token after every pass but the last, in token order -> the cascaded
    scores.

    raw: unchanged. token: the lowest score so far, as a token that a router has stopped never reaches the
    next one. device, position: the lowest score so far at each place of the authors' arrays. The top-k of a
    pass reorders these arrays, so a place holds different tokens in different passes. device: their code as
    it is; its unsorted top-k leaves an order that depends on the device of `scores`. position: with a sorted
    top-k, so that a place is a rank.
    """
    if kind == "raw":
        return scores
    if kind == "token":
        return scores.cummin(dim=-1).values
    if kind == "position":
        return scores.sort(dim=1, descending=True).values.cummin(dim=-1).values
    import torch

    order = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
    places = []
    for scored in scores.unbind(-1):
        kept, chosen = scored.gather(1, order).topk(scores.shape[1], dim=1, sorted=False)
        places.append(kept)
        order = order.gather(1, chosen)
    return torch.stack(places, dim=-1).cummin(dim=-1).values
