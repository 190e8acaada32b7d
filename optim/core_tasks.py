"""CORE, a mean score over in-context learning tasks: items, few-shot examples, prompts, spans, accuracies.

Nothing here reads files (optim/core_bundle.py) or runs a network (optim/core_metric.py). Which items and
examples are taken, in which words, and what of them is scored is that of the public code, so that scores can
be compared.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MULTIPLE_CHOICE, SCHEMA, LANGUAGE_MODELING = "multiple_choice", "schema", "language_modeling"
KINDS = (MULTIPLE_CHOICE, SCHEMA, LANGUAGE_MODELING)
DELIMITER = " "  # where a task names none
SHUFFLE_SEED, FEWSHOT_SEED = 1337, 1234
BETWEEN = "\n\n"  # examples


@dataclass(frozen=True)
class Item:
    """options: of each choice, the text before the delimiter and the one after it; a task of language
    modelling has one. gold: the right one.
    """

    options: tuple[tuple[str, str], ...]
    gold: int = 0


@dataclass(frozen=True)
class Task:
    """kind: one of KINDS. baseline: accuracy of guessing, in percent."""

    label: str
    kind: str
    items: Sequence[Item]
    num_fewshot: int
    baseline: float
    delimiter: str = DELIMITER


@dataclass(frozen=True)
class Prompt:
    """tokens: of a prompt; those from `start` on are scored."""

    tokens: Sequence[int]
    start: int

    def cut_to(self, longest: int) -> Prompt:
        """The last tokens, at most so many."""
        dropped = max(0, len(self.tokens) - longest)
        return Prompt(self.tokens[dropped:], self.start - dropped)

    @property
    def can_be_scored(self) -> bool:
        """Whether something is to be scored, and nothing of it is the first token, which none predicts."""
        return 1 <= self.start < len(self.tokens)


# items and examples


def selected(count: int, most: int) -> list[int]:
    """Positions of the items that count, in their order. most: of them all; all where it is not positive."""
    order = list(range(count))
    random.Random(SHUFFLE_SEED).shuffle(order)
    return order[:most] if most > 0 else order


def examples_of(index: int, count: int, number: int) -> list[int]:
    """Positions, among `count` selected items, of so many examples for the one at `index`."""
    others = random.Random(FEWSHOT_SEED + index).sample(range(count - 1), number)
    return [other + (other >= index) for other in others]


# prompts


def _text(task: Task, item: Item, option: int) -> str:
    before, after = item.options[option]
    return before + task.delimiter + after


def prompts_of(task: Task, item: Item, examples: Sequence[Item]) -> list[str]:
    """Of each choice; for language modelling, without the continuation and with it."""
    shots = "".join(_text(task, example, example.gold) + BETWEEN for example in examples)
    prompts = [shots + _text(task, item, option) for option in range(len(item.options))]
    if task.kind == LANGUAGE_MODELING:
        return [(shots + item.options[0][0] + task.delimiter).strip(), prompts[0]]
    return prompts


# spans


def shared(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    length = min(map(len, sequences))
    for position in range(length):
        if len({tokens[position] for tokens in sequences}) > 1:
            return position
    return length


def spanned(kind: str, prompts: Sequence[Sequence[int]]) -> list[Prompt]:
    """What is scored of the tokens of an item's prompts: after what all choices begin with, what all end
    with, or what a continuation adds. Where the tokens of a prompt change with its continuation, nothing.
    """
    if kind == MULTIPLE_CHOICE:
        start = shared(prompts)
        return [Prompt(tokens, start) for tokens in prompts]
    if kind == SCHEMA:
        length = shared([tokens[::-1] for tokens in prompts])
        return [Prompt(tokens, len(tokens) - length) for tokens in prompts]
    without, whole = prompts
    begins = list(whole[: len(without)]) == list(without)
    return [Prompt(whole, len(without) if begins else len(whole))]


# scores


def is_right(task: Task, item: Item, losses: Sequence[float], greedy: Sequence[bool]) -> bool:
    """losses: mean of each choice's span, of which the first of the lowest is taken; greedy: whether each
    token of it is the likeliest. Losses that are not finite are never right.
    """
    if not np.isfinite(losses).all():
        return False
    if task.kind == LANGUAGE_MODELING:
        return greedy[0]
    return min(range(len(losses)), key=losses.__getitem__) == item.gold


def centred(accuracy: float, baseline: float) -> float:
    """0 where the accuracy is that of guessing (percent), 1 where all is right."""
    return (accuracy - 0.01 * baseline) / (1 - 0.01 * baseline)
