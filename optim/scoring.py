"""Log-likelihoods and greedy continuations of token lists of any lengths, for downstream tasks.

    scorer = Scorer(model, device, batch_size=16)
    scorer.loglikelihoods([([464, 3290], [318])])     # [(log-probability, whether greedy decoding gives it)]
    scorer.greedy([([464, 3290], 8)], stop=...)       # new tokens of each prompt

Sequences of a batch are padded on the right, which changes nothing for a causal model; a model whose routing
looks at the whole sequence gets sequences of one length only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from models.loss import IGNORE
from models.transformer import Transformer


@dataclass(frozen=True)
class Window:
    """A sequence for the model, and how many of its last predictions count."""

    tokens: list[int]  # inputs and, one later, the last target
    scored: int

    def targets(self) -> list[int]:
        """The next token of each input, IGNORE where the prediction does not count."""
        return [IGNORE] * (len(self.tokens) - 1 - self.scored) + self.tokens[-self.scored :]


def windows(context: Sequence[int], continuation: Sequence[int], longest: int) -> list[Window]:
    """Windows of at most `longest` inputs in which each token of the continuation is predicted once.

    If both do not fit, the left end of the context is dropped. A continuation longer than that is split into
    pieces, each preceded by as many tokens as fit; `context` must hold at least one token.
    """
    everything = [*context, *continuation]
    pieces = []
    for begin in range(0, len(continuation), longest):
        end = min(begin + longest, len(continuation))
        stop = len(context) + end
        pieces.append(Window(everything[max(0, stop - longest - 1) : stop], end - begin))
    return pieces


class Scorer:
    """A model in evaluation mode on a device; `autocast` makes the context it runs in.

    longest: tokens that it is given at once (None: its sequence_length). most_tokens: of a batch, padding
    included, if it has more than one sequence (None: batch_size sequences of any length).
    """

    def __init__(
        self,
        model: Transformer,
        device: torch.device,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        longest: int | None = None,
        most_tokens: int | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.device, self.batch_size, self.autocast = device, batch_size, autocast
        self.longest = model.settings.sequence_length if longest is None else longest
        self.most_tokens = most_tokens
        self.one_length = model.settings.looks_ahead()

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of the sequences of each batch, the longest first, so that too little memory shows at
        once.
        """
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        groups = [order]
        if self.one_length:
            groups = [list(group) for _, group in groupby(order, key=lambda i: lengths[i])]
        for group in groups:
            while group:
                size = self.batch_size
                if self.most_tokens is not None:
                    size = max(1, self.most_tokens // max(1, lengths[group[0]]))
                yield group[:size]
                group = group[size:]

    def _padded(self, sequences: Sequence[Sequence[int]], filler: int) -> Tensor:
        width = max(map(len, sequences))
        padded = [[*tokens, *[filler] * (width - len(tokens))] for tokens in sequences]
        return torch.tensor(padded, device=self.device)

    @torch.no_grad()
    def loglikelihoods(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        progress: Callable[[int], object] = lambda done: None,
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-probability in nats, and whether every
        token of it is the likeliest. `progress` gets the number of requests finished.
        """
        requests_of, pieces = [], []  # of each window, and the windows
        for request, (context, continuation) in enumerate(requests):
            for window in windows(context, continuation, self.longest):
                requests_of.append(request)
                pieces.append(window)
        sums, greedy = [0.0] * len(requests), [True] * len(requests)
        for batch in self.batches([len(window.tokens) for window in pieces]):
            chosen = [pieces[index] for index in batch]
            idx = self._padded([window.tokens[:-1] for window in chosen], 0)
            targets = self._padded([window.targets() for window in chosen], IGNORE)
            with self.autocast():
                out = self.model(idx, targets=targets)
            losses = out["token_losses"].double().sum(1).tolist()  # a token that does not count has loss 0
            all_hit = (out["hits"] | (targets == IGNORE)).all(1).tolist()
            for index, loss, hit in zip(batch, losses, all_hit, strict=True):
                sums[requests_of[index]] -= loss
                greedy[requests_of[index]] &= hit
            progress(len(batch))
        return list(zip(sums, greedy, strict=True))

    @torch.no_grad()
    def greedy(
        self,
        prompts: Sequence[tuple[Sequence[int], int]],
        stop: Callable[[int, list[int]], bool],
        vocabulary: int | None = None,
    ) -> list[list[int]]:
        """New tokens of each (prompt, most new tokens). A prompt's continuation ends when
        `stop(index, its new tokens)` is true.

        The model keeps no cache and sees the last `sequence_length` tokens. Prompts must not be empty.
        `vocabulary`: only tokens below it are chosen (None: all; a model's output is often wider than its
        tokenizer).
        """
        new: list[list[int]] = [[] for _ in prompts]
        unfinished = [index for index, (_, most) in enumerate(prompts) if most > 0]
        while unfinished:
            inputs = [[*prompts[index][0], *new[index]][-self.longest :] for index in unfinished]
            for batch in self.batches([len(tokens) for tokens in inputs]):
                sequences = [inputs[place] for place in batch]
                ends = torch.tensor([len(tokens) - 1 for tokens in sequences], device=self.device)
                with self.autocast():
                    logits = self.model(self._padded(sequences, 0), get_logits=True)["logits"]  # (B, T, V)
                everyone = torch.arange(len(batch), device=self.device)
                best = logits[everyone, ends, :vocabulary].argmax(-1).tolist()
                for place, token in zip(batch, best, strict=True):
                    new[unfinished[place]].append(token)
            unfinished = [
                index
                for index in unfinished
                if len(new[index]) < prompts[index][1] and not stop(index, new[index])
            ]
        return new
