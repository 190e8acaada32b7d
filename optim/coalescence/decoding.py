"""Draws of the times of all windows from a network's predictions, each row by a generator of its own.

    tokens = decode(network, x, uniforms_of(rows, n_windows, base_seed), top_k=50)

Legend: I sequences, R replicates of each, W windows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from data.genomes.targets import BOS, FIRST
from models.coalescence.decoding import Cache, prefill, step
from models.coalescence.network import CoalescenceTransformer


def uniforms_of(rows: Iterable[int], n_windows: int, base_seed: int) -> Tensor:
    """A uniform number for each window of each row, (rows, W): those of a row come from a generator seeded
    base_seed + its number among all rows, so they do not depend on what it is computed together with.
    """
    generator = torch.Generator()
    drawn = [torch.rand(n_windows, generator=generator.manual_seed(base_seed + row)) for row in rows]
    return torch.stack(drawn)


def draw(logits: Tensor, uniforms: Tensor, top_k: int) -> Tensor:
    """Tokens (rows,) of logits (rows, V), among the top_k likeliest that stand for a time: the first whose
    cumulative probability exceeds the uniform number (rows,).

    What is as likely as the last of these stays too.
    """
    logits = logits.float()
    logits[:, :FIRST] = -torch.inf
    least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
    kept = logits.masked_fill(logits < least, -torch.inf)
    cumulative = kept.softmax(-1).cumsum(-1)
    # whatever rounding left: a token after the last one that is kept is never drawn
    cumulative.masked_fill_(cumulative >= cumulative[:, -1:], 1.0)
    return torch.searchsorted(cumulative, uniforms.unsqueeze(-1), right=True).squeeze(-1)


@torch.inference_mode()
def decode(
    network: CoalescenceTransformer,
    x: Tensor,
    uniforms: Tensor,
    top_k: int,
    advanced: Callable[[], object] = lambda: None,
) -> Tensor:
    """Tokens of the times of x (I, 2, S, W, N), without BOS: (I, R, W). uniforms (I, R, W). advanced: called
    after each window.
    """
    sequences, replicates, windows = uniforms.shape
    cache = Cache(replicates)
    prefill(network, x, cache)
    by_window = uniforms.flatten(0, 1).T.contiguous().to(x.device)
    last = torch.full((sequences * replicates,), BOS, dtype=torch.int64, device=x.device)
    drawn = torch.empty((windows, sequences * replicates), dtype=torch.int64, device=x.device)
    for position in range(windows):
        last = draw(step(network, last, position, cache), by_window[position], top_k)
        drawn[position] = last
        advanced()
    return drawn.T.unflatten(0, (sequences, replicates))
