"""Log-likelihoods and greedy continuations of token lists of any lengths: what downstream tasks ask of a
model.

    scorer = Scorer(model, device, batch_size=16)
    scorer.loglikelihoods([([464, 3290], [318])])       # [(log-probability, whether greedy decoding would say
                                                        it)]
    scorer.greedy([([464, 3290], 8)], stop=...)         # new tokens of each prompt

Rows of a batch are padded on the right, which changes nothing for a causal model; a model whose routing looks
at the whole row gets rows of one length only.
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
    """A row for the model, and how many of its last predictions count."""

    tokens: list[int]  # inputs and, one later, the last target
    scored: int


def windows(context: Sequence[int], continuation: Sequence[int], longest: int) -> list[Window]:
    """Rows of at most `longest` inputs in which each token of the continuation is predicted once.

    The context loses its left end where both do not fit. A continuation longer than that is cut into pieces,
    each preceded by as many tokens as fit; `context` must hold at least one token.
    """
    everything = [*context, *continuation]
    pieces = []
    for begin in range(0, len(continuation), longest):
        end = min(begin + longest, len(continuation))
        stop = len(context) + end
        pieces.append(Window(everything[max(0, stop - longest - 1) : stop], end - begin))
    return pieces


class Scorer:
    """A model in evaluation mode on a device; `autocast` makes the context it runs in."""

    def __init__(
        self,
        model: Transformer,
        device: torch.device,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.device, self.batch_size, self.autocast = (
            model.to(device).eval(),
            device,
            batch_size,
            autocast,
        )
        self.longest = model.settings.sequence_length
        self.one_length = model.settings.looks_ahead()

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of the rows of each batch, the longest rows first, so that too little memory shows at
        once.
        """
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        groups = [order]
        if self.one_length:
            groups = [list(group) for _, group in groupby(order, key=lambda i: lengths[i])]
        for group in groups:
            for begin in range(0, len(group), self.batch_size):
                yield group[begin : begin + self.batch_size]

    def _padded(self, rows: Sequence[Sequence[int]], filler: int) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], device=self.device)

    @torch.no_grad()
    def loglikelihoods(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        progress: Callable[[int], object] = lambda done: None,
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-probability in nats, and whether every
        token of it is the likeliest. `progress` is told the number of requests finished.
        """
        owners, rows = [], []
        for number, (context, continuation) in enumerate(requests):
            for window in windows(context, continuation, self.longest):
                owners.append(number)
                rows.append(window)
        sums, greedy = [0.0] * len(requests), [True] * len(requests)
        for batch in self.batches([len(row.tokens) for row in rows]):
            idx = self._padded([rows[row].tokens[:-1] for row in batch], 0)
            targets = self._padded(
                [
                    [IGNORE] * (len(rows[row].tokens) - 1 - rows[row].scored)
                    + rows[row].tokens[-rows[row].scored :]
                    for row in batch
                ],
                IGNORE,
            )
            with self.autocast():
                out = self.model(idx, targets=targets)
            losses = out["token_losses"].double().sum(1).tolist()  # a token that does not count has loss 0
            all_hit = (out["hits"] | (targets == IGNORE)).all(1).tolist()
            for row, loss, hit in zip(batch, losses, all_hit, strict=True):
                sums[owners[row]] -= loss
                greedy[owners[row]] &= hit
            progress(len(batch))
        return list(zip(sums, greedy, strict=True))

    @torch.no_grad()
    def greedy(
        self,
        prompts: Sequence[tuple[Sequence[int], int]],
        stop: Callable[[int, list[int]], bool],
        vocabulary: int | None = None,
    ) -> list[list[int]]:
        """New tokens of each (prompt, most new tokens). A row ends when `stop(its number, its new tokens)`
        says so.

        The model keeps no cache and sees the last `sequence_length` tokens. Prompts must not be empty.
        `vocabulary`: tokens that may be said are below it (None: all; a model's output is often wider than
        its tokenizer).
        """
        new: list[list[int]] = [[] for _ in prompts]
        going = [row for row, (_, most) in enumerate(prompts) if most > 0]
        while going:
            seen = [[*prompts[row][0], *new[row]][-self.longest :] for row in going]
            for batch in self.batches([len(tokens) for tokens in seen]):
                ends = torch.tensor([len(seen[number]) - 1 for number in batch], device=self.device)
                with self.autocast():
                    # (B, T, V)
                    logits = self.model(self._padded([seen[number] for number in batch], 0), get_logits=True)[
                        "logits"
                    ]
                best = (
                    logits[torch.arange(len(batch), device=self.device), ends, :vocabulary]
                    .argmax(-1)
                    .tolist()
                )
                for number, token in zip(batch, best, strict=True):
                    new[going[number]].append(token)
            going = [row for row in going if len(new[row]) < prompts[row][1] and not stop(row, new[row])]
        return new
