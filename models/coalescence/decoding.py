"""One token at a time: the windows go through the network once, and each token of a time after that costs
one position, for all replicates of all sequences together.

    cache = Cache(replicates=15)
    prefill(network, x, cache)                       # x (I, 2, 4, W, N)
    logits = step(network, tokens, 0, cache)         # tokens (I * replicates,), each the first, BOS

Legend: I sequences, R replicates of each, W windows, H heads, Dh head width, T tokens so far, V vocabulary.
Rows of a batch: all replicates of the first sequence, then those of the second, and so on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.attention import KeyValue
from models.coalescence.network import CoalescenceTransformer


class Cache:
    """Keys and values of each block: of the windows, which the replicates of a sequence share, (I, H, W, Dh),
    and of their tokens, (I, H, R, W, Dh), of which those so far are filled.
    """

    def __init__(self, replicates: int) -> None:
        self.replicates = replicates
        self.source: list[KeyValue] = []
        self.own: list[KeyValue] = []

    def fill(self, source: list[KeyValue]) -> None:
        """Take the keys and values of the windows, and make room for as many tokens."""
        self.source, self.own = source, []
        for keys, _ in source:
            sequences, heads, windows, width = keys.shape
            shape = (sequences, heads, self.replicates, windows, width)
            self.own.append((keys.new_empty(shape), keys.new_empty(shape)))


def prefill(network: CoalescenceTransformer, x: Tensor, cache: Cache) -> None:
    """Run the windows of x (I, 2, S, W, N) alone, which no token is seen by."""
    states = network.encode(x)
    _, source = network.through(states, states.shape[1])
    cache.fill(source)


def attend_shared(q: Tensor, source: KeyValue, own: KeyValue) -> Tensor:
    """q (I, H, R, Dh) over keys and values of the windows (I, H, W, Dh) and of each row's tokens (I, H, R, T,
    Dh) -> (I, H, R, Dh). The windows are read once for all replicates.
    """
    q = q * q.shape[-1] ** -0.5
    of_source = q @ source[0].transpose(-2, -1)
    of_own = (own[0] @ q.unsqueeze(-1)).squeeze(-1)
    weights = torch.cat((of_source, of_own), dim=-1).softmax(-1)
    on_source, on_own = weights.split([of_source.shape[-1], of_own.shape[-1]], dim=-1)
    return on_source @ source[1] + (on_own.unsqueeze(-2) @ own[1]).squeeze(-2)


def step(network: CoalescenceTransformer, tokens: Tensor, position: int, cache: Cache) -> Tensor:
    """Feed the token (I * R,) of a position, from 0, which is BOS's -> logits of the next one (I * R, V)."""
    windows = cache.source[0][0].shape[2]
    rope = network.rope(windows + position, 1, tokens.device)
    x = network.embed(tokens.unsqueeze(1))
    for block, source, (keys, values) in zip(network.blocks, cache.source, cache.own, strict=True):
        q, k, v = block.project(x, None, rope, None)
        sequences = keys.shape[0]
        q, k, v = (part.squeeze(2).unflatten(0, (sequences, -1)).transpose(1, 2) for part in (q, k, v))
        keys[:, :, :, position], values[:, :, :, position] = k, v
        so_far = (keys[:, :, :, : position + 1], values[:, :, :, : position + 1])
        y = attend_shared(q, source, so_far)
        x = block.finish(x, y.transpose(1, 2).flatten(0, 1).unsqueeze(2))
    return network.logits(x.squeeze(1))
