"""Text from a model, token by token, with the keys and values of earlier tokens kept in every pass.

Legend: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.tokenizer import Tokenizer
from errors import UserError
from models.cache import GenerationCache, without_gradients
from models.transformer import Transformer
from optim.captured import CapturedSteps, can_be_captured, why
from optim.reporting import log


def tokens_of(tokenizer: Tokenizer, text: str, vocab_size: int) -> list[int]:
    """Raises UserError for text that the model has no tokens for."""
    tokens = tokenizer.encode(text)
    largest = max(tokens, default=0)
    if largest >= vocab_size:
        raise UserError(f"{text!r}: token {largest} is beyond the model's --vocab_size {vocab_size}")
    return tokens


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
    """Sequences of tokens that grow. One that outgrows the model's sequence_length (or `longest`, which is
    for modern blocks) loses its older half.

    Routed models must route by threshold: capacities would ask for tokens that are not there yet.
    """

    def __init__(
        self,
        model: Transformer,
        count: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        longest: int | None = None,
        captures: bool = False,
    ) -> None:
        """captures: single tokens go through CUDA graphs, where these can be had."""
        assert not model.settings.variant.routes or model.settings.routing == "threshold", (
            "capacities look at later tokens"
        )
        if next(model.parameters()).device != device:  # else graphs of a training read its weights there
            model.to(device)
        self.model, self.device, self.autocast = model.eval(), device, autocast
        self.sequences: list[list[int]] = [[] for _ in range(count)]
        self.longest = model.settings.sequence_length if longest is None else longest
        self.taken = [0.0] * model.settings.n_repeat  # tokens that took part in each pass
        self.captures = captures and can_be_captured(model.settings, device)
        self._restart()

    def _restart(self) -> None:
        self.cache = GenerationCache(self.model.settings, len(self.sequences), self.longest)
        self.lengths = [0] * len(self.sequences)
        self._steps = CapturedSteps(self._step, len(self.sequences), self.longest, self.device)

    def _step(self, tokens: Tensor, positions: Tensor, slots: int) -> Tensor:
        """As CapturedSteps has it."""
        self.cache.begin(positions, slots, ragged=True)
        with self.autocast():
            return self.model.logits(self.model.run(tokens, self.cache).states[:, 0]).float()

    def _captured(
        self, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], used: int
    ) -> Tensor | None:
        """Logits after one token of each sequence; None where they are to be computed without a graph."""
        if not self.captures or self.cache.length == 0 or len(tokens[0]) > 1:
            return None
        before = self.cache.length
        try:
            logits = self._steps(tokens, positions, used)
            self.cache.length = used
            return logits
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.cache.length, self.captures = before, False
            log.warning(f"note: generation goes on without CUDA graphs: {why(error)}")
            return None

    def extend(self, new: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to each sequence (some may get none) -> logits (B, V) after the last of them, float32
        on the CPU.
        """
        with without_gradients(self.device):
            logits = self._extend(new)
        return logits.clone()  # an ordinary tensor

    def _extend(self, new: Sequence[Sequence[int]]) -> Tensor:
        """As `extend`."""
        for sequence, tokens in zip(self.sequences, new, strict=True):
            sequence.extend(tokens)
        longest, inputs = self.longest, new
        lengths = [length + len(tokens) for length, tokens in zip(self.lengths, new, strict=True)]
        if max(lengths) > longest:
            inputs = []
            for sequence, length in zip(self.sequences, lengths, strict=True):
                kept = length if length <= longest else longest // 2 + 1
                inputs.append(sequence[-kept:])
            self._restart()
        width = max(map(len, inputs))
        idx, positions = [], []
        for length, tokens in zip(self.lengths, inputs, strict=True):
            padding = width - len(tokens)
            idx.append([*tokens, *[0] * padding])
            positions.append([*range(length, length + len(tokens)), *[longest] * padding])
        self.lengths = [length + len(tokens) for length, tokens in zip(self.lengths, inputs, strict=True)]
        used, active = max(self.lengths), None
        logits = self._captured(idx, positions, used)
        if logits is None:
            self.cache.begin(
                torch.tensor(positions, device=self.device),
                used,
                ragged=len(set(self.lengths)) > 1 or len(set(map(len, inputs))) > 1,
            )
            with self.autocast():
                hidden = self.model.run(torch.tensor(idx, device=self.device), self.cache)
                last = torch.tensor([max(len(tokens) - 1, 0) for tokens in inputs], device=self.device)
                batch = torch.arange(len(inputs), device=self.device)
                logits = self.model.logits(hidden.states[batch, last])
            active = hidden.active
        if active is None:
            active = [sum(map(len, inputs)) / len(inputs)] * len(self.taken)
        for pass_index, count in enumerate(active):
            self.taken[pass_index] += count * len(inputs)
        return logits.float().cpu()

    def shares(self) -> list[float]:
        """Of all tokens so far, the share that went on after each pass but the last."""
        return [taken / self.taken[0] for taken in self.taken[1:]]


@contextmanager
def lent(
    network: Any, device: torch.device, thresholds: tuple[float, ...], seed: int, eager: bool
) -> Iterator[None]:
    """A network in training is for generation; then it and all generators are as they were.

    thresholds: by which routed models route, as --router_threshold has them. eager: it is compiled, and
    programs of other shapes could replace those of the training.
    """
    settings, was_training = network.settings, network.training
    with ExitStack() as restored:
        restored.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if eager:
            restored.enter_context(torch.compiler.set_stance("force_eager"))
        torch.manual_seed(seed)  # pondernet draws its exits
        if settings.variant.routes:
            network.settings = replace(settings, routing="threshold", router_threshold=thresholds)
        try:
            yield
        finally:
            network.settings = settings
            network.train(was_training)


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    most: int,
    sampling: Sampling,
    seed: int,
    vocabulary: int,
    ends: Callable[[int, list[int]], bool],
) -> Iterator[tuple[int, int]]:
    """Yield (index, token) as they are chosen, until each prompt has `most` or `ends(index, its new tokens)`,
    which is asked once a token.

    Each prompt has a generator of its own, so that its continuation does not depend on the others. Tokens are
    below `vocabulary`.
    """
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    continuations: list[list[int]] = [[] for _ in prompts]
    new: list[Sequence[int]] = list(prompts)
    while any(new):
        logits = session.extend(new)
        found: list[Sequence[int]] = []
        for index, more in enumerate(new):
            if not more:
                found.append([])
                continue
            token = sampling.choose(logits[index, :vocabulary], generators[index])
            continuations[index].append(token)
            yield index, token
            found.append(
                [] if ends(index, continuations[index]) or len(continuations[index]) >= most else [token]
            )
        new = found
