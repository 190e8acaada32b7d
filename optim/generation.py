"""Text from a model, token by token, with the keys and values of earlier tokens kept in every pass.

Legend: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError
from models.cache import GenerationCache
from models.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """temperature 0: the likeliest token. top_k, top_p: only the likeliest k tokens, or the fewest that
    hold this mass (None: all).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def choose(self, logits: Tensor, generator: torch.Generator) -> int:
        """A token from logits (V,) on the CPU."""
        if not bool(logits.isfinite().all()):
            raise UserError(
                "the model's logits are not finite: its weights are ruined; take an older checkpoint"
            )
        if self.temperature == 0:
            return int(logits.argmax())
        # the whole vocabulary is sorted only where its order matters: that takes longer than all the rest of
        # a choice
        tokens = None
        if self.top_k is not None:
            logits, tokens = logits.topk(min(self.top_k, len(logits)))
        elif self.top_p is not None:
            logits, tokens = logits.sort(descending=True, stable=True)
        odds = ((logits.double() - logits.max()) / self.temperature).softmax(0)
        if self.top_p is not None:
            odds[1:][(odds.cumsum(0) - odds)[1:] >= self.top_p] = 0
        reached = odds.cumsum(0)
        place = int(
            torch.searchsorted(
                reached, torch.rand((), dtype=torch.float64, generator=generator) * reached[-1], right=True
            )
        )
        place = min(place, len(odds) - 1)
        return place if tokens is None else int(tokens[place])


class Session:
    """Rows of tokens that grow. A row that outgrows the model's sequence_length forgets its older half.

    Routed models must route by threshold: capacities would ask for tokens that are not there yet.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        assert not model.settings.row.routes or model.settings.routing == "threshold", (
            "capacities look at later tokens"
        )
        self.model, self.device, self.autocast = model.to(device).eval(), device, autocast
        self.rows: list[list[int]] = [[] for _ in range(rows)]
        self.taken = [0.0] * model.settings.n_repeat  # tokens that took part in each pass
        self._restart()

    def _restart(self) -> None:
        self.cache = GenerationCache(self.model.settings, len(self.rows))
        self.lengths = [0] * len(self.rows)

    @torch.no_grad()
    def feed(self, new: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to each row (some may get none) -> logits (B, V) after the last of them, float32
        on the CPU.
        """
        for row, more in zip(self.rows, new, strict=True):
            row.extend(more)
        longest, fed = self.model.settings.sequence_length, new
        if max(length + len(more) for length, more in zip(self.lengths, new, strict=True)) > longest:
            held = [length + len(more) for length, more in zip(self.lengths, new, strict=True)]
            fed = [
                row[-(count if count <= longest else longest // 2 + 1) :]
                for row, count in zip(self.rows, held, strict=True)
            ]
            self._restart()
        width = max(map(len, fed))
        idx = torch.tensor([[*more, *[0] * (width - len(more))] for more in fed], device=self.device)
        positions = torch.tensor(
            [
                [*range(length, length + len(more)), *[longest] * (width - len(more))]
                for length, more in zip(self.lengths, fed, strict=True)
            ],
            device=self.device,
        )
        self.lengths = [length + len(more) for length, more in zip(self.lengths, fed, strict=True)]
        self.cache.begin(
            positions, max(self.lengths), ragged=len(set(self.lengths)) > 1 or len(set(map(len, fed))) > 1
        )
        with self.autocast():
            hidden = self.model.run(idx, self.cache)
            norm, weight = self.model.head
            last = torch.tensor([max(len(more) - 1, 0) for more in fed], device=self.device)
            logits = F.linear(norm(hidden.states[torch.arange(len(fed), device=self.device), last]), weight)
        tokens = sum(map(len, fed))
        active = [tokens / len(fed)] * len(self.taken) if hidden.active is None else hidden.active
        for number, count in enumerate(active):
            self.taken[number] += count * len(fed)
        return logits.float().cpu()

    def shares(self) -> list[float]:
        """Of all tokens so far, the share that went on after each pass but the last."""
        return [taken / self.taken[0] for taken in self.taken[1:]]


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    most: int,
    sampling: Sampling,
    seed: int,
    vocabulary: int,
    ends: Callable[[int, list[int]], bool],
) -> Iterator[tuple[int, int]]:
    """Yield (row, token) as they are found, until each row has `most` or `ends(row, its new tokens)`, which
    is asked once a token.

    Each row has a generator of its own, so that what it says does not depend on the others. Tokens are below
    `vocabulary`.
    """
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    said: list[list[int]] = [[] for _ in prompts]
    new: list[Sequence[int]] = list(prompts)
    while any(new):
        logits = session.feed(new)
        found: list[Sequence[int]] = []
        for row, more in enumerate(new):
            if not more:
                found.append([])
                continue
            token = sampling.choose(logits[row, :vocabulary], generators[row])
            said[row].append(token)
            yield row, token
            found.append([] if ends(row, said[row]) or len(said[row]) >= most else [token])
        new = found
