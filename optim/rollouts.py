"""Completions of prompts that are drawn from the network in training, many at once, and their rewards.

    rollouts = Rollouts(Sampling(tokenizer, stop=10, most=8), reward_of("exact"))
    found = rollouts.of(network, device, prompts, keys)     # a completion and its reward for each key

Each draw is a pure function of a key and the place in the completion: no generator, nothing to keep. A
micro-batch is generated as a whole, with the network in evaluation mode and a KV cache.

Legend: B completions, C most tokens of one, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.order import splitmix64, splitmix64_array
from data.tokenizer import Tokenizer, text_of
from errors import OwnError
from optim.generation import Session, lent
from optim.rewards import Checked

Autocast = Callable[[], AbstractContextManager[Any]]
TRAINING, EVALUATION = 0x6B0110A7, 0xE7A1  # streams of draws, apart from each other and from the data's order


def draw_keys(seed: int, stream: int, prompts: Sequence[int], group_size: int) -> NDArray[np.uint64]:
    """Of the completions 0 .. group_size - 1 of each prompt, by the prompts' numbers (N,) -> (N * G,)."""
    start = splitmix64(splitmix64(seed & ((1 << 64) - 1)) ^ stream)
    of_prompts = splitmix64_array(np.asarray(prompts, dtype=np.uint64) ^ np.uint64(start))
    members = np.arange(group_size, dtype=np.uint64)
    return splitmix64_array(of_prompts[:, None] ^ members).ravel()


def uniforms(keys: NDArray[np.uint64], place: int) -> Tensor:
    """A float64 in [0, 1) for each key (B,), of the token at this place of its completion."""
    bits = splitmix64_array(splitmix64_array(keys) ^ np.uint64(place))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def choose(logits: Tensor, draws: Tensor, temperature: float) -> Tensor:
    """Tokens (B,) from logits (B, V) on the CPU and draws (B,); temperature 0: the likeliest.

    Raises OwnError for logits that are not finite.
    """
    if not bool(logits.isfinite().all()):
        raise OwnError("the model's logits are not finite: its weights are ruined; take an older checkpoint")
    if temperature == 0:
        return logits.argmax(-1)
    odds = ((logits.double() - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    reached = odds.cumsum(-1)
    place = torch.searchsorted(reached, (draws * reached[:, -1])[:, None], right=True)
    return place[:, 0].clamp(max=logits.shape[1] - 1)


@dataclass(frozen=True)
class Sampling:
    """stop: token that ends a completion, and is its last one; None: there is none. most: tokens of a
    completion. thresholds: of the routers of adaptive models, as --router_threshold. eager: the network is
    compiled.
    """

    tokenizer: Tokenizer
    stop: int | None
    most: int
    temperature: float = 1.0
    thresholds: tuple[float, ...] = (0.0,)
    autocast: Autocast = nullcontext
    eager: bool = False


@dataclass(frozen=True)
class Completions:
    """tokens: (B, C) int64, the stop token included, 0 behind the lengths (B,). ended: (B,), whether the stop
    token came. rewards: (B,) float64.
    """

    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    rewards: Tensor


@dataclass(frozen=True)
class Asked:
    """A prompt: its tokens, its text, and the answer that its reward knows (None: there is none)."""

    tokens: Sequence[int]
    text: str
    answer: str | None = None


class Rollouts:
    """beat: called after every token, for a watchdog."""

    def __init__(self, sampling: Sampling, reward: Checked) -> None:
        self.sampling, self.reward = sampling, reward
        self.beat: Callable[[], object] = lambda: None

    def of(
        self, network: Any, device: torch.device, asked: Sequence[Asked], keys: NDArray[np.uint64]
    ) -> Completions:
        """A completion for each of the keys (N * G,), which come prompt by prompt. The network is left as it
        was. Raises OwnError where a reward fails.
        """
        group_size = len(keys) // len(asked)
        each = [prompt for prompt in asked for _ in range(group_size)]
        sampling = self.sampling
        with lent(network, device, sampling.thresholds, seed=0, eager=sampling.eager):
            session = Session(network, len(each), device, sampling.autocast)
            tokens, lengths, ended = self._complete(session, [prompt.tokens for prompt in each], keys)
        if torch.is_autocast_enabled(device.type):
            # weights that were cast without a gradient must not serve the pass that wants one
            torch.clear_autocast_cache()
        rewards = [self._reward(*one) for one in zip(each, tokens, lengths, ended, strict=True)]
        return Completions(tokens, lengths, ended, torch.tensor(rewards, dtype=torch.float64))

    def _complete(
        self, session: Session, prompts: Sequence[Sequence[int]], keys: NDArray[np.uint64]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, lengths and whether they ended, as Completions has them."""
        sampling = self.sampling
        vocabulary = min(sampling.tokenizer.size, session.model.settings.vocab_size)
        tokens = torch.zeros(len(prompts), sampling.most, dtype=torch.int64)
        lengths = torch.zeros(len(prompts), dtype=torch.int64)
        going = torch.ones(len(prompts), dtype=torch.bool)
        new: list[Sequence[int]] = list(prompts)
        for place in range(sampling.most):
            logits = session.extend(new)[:, :vocabulary]
            chosen = choose(logits, uniforms(keys, place), sampling.temperature)
            tokens[going, place] = chosen[going]
            lengths += going
            if sampling.stop is not None:
                going = going & (chosen != sampling.stop)
            self.beat()
            if not bool(going.any()):
                break
            new = [[token] * more for token, more in zip(chosen.tolist(), going.tolist(), strict=True)]
        return tokens, lengths, ~going

    def _reward(self, prompt: Asked, tokens: Tensor, length: Tensor, ended: Tensor) -> float:
        """Of a completion's text, without the stop token."""
        new = tokens[: int(length) - int(ended)].tolist()
        reward = self.reward(prompt.text, text_of(self.sampling.tokenizer, new), prompt.answer)
        self.beat()
        return reward
