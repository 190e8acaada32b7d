"""Supervised fine-tuning: the next-token loss of the tokens that count, which are those of the answers.

    fit(Sft(network), source, steps=200)

A batch has the tensors `inputs` and `targets`, (N, T) int64, and `counted`, (N, T) bool: which targets count;
its `count` is how many these are.

Legend: N examples, T positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.batch import Batch, EvalSet
from models.loss import IGNORE
from optim.objectives import Loss, NextToken


def next_token_batch(batch: Batch) -> Batch:
    """With targets that are IGNORE where they do not count."""
    targets = batch["targets"].masked_fill(~batch["counted"], IGNORE)
    return Batch({"inputs": batch["inputs"], "targets": targets}, batch.count)


class Sft(NextToken):
    """As NextToken, mean over the tokens that count."""

    def forward(self, batch: Batch) -> Loss:
        return super().forward(next_token_batch(batch))

    def describe(self) -> list[str]:
        """As NextToken.describe."""
        return ["objective: supervised fine-tuning (sft) on the tokens of answers"]


class Answers:
    """Examples to measure on as sets of text are, by the tokens that count alone."""

    def __init__(self, examples: EvalSet) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """As EvalSet.batch."""
        return next_token_batch(self.examples.batch(numbers))
