"""Examples for fine-tuning as batches of one width: sources of a training, and sets to measure on.

    source = SftSource(splits, sequence_length, data_seed)      # of splits.train, epoch by epoch
    held_out = SftSet(splits.val, sequence_length, splits.stop)

N examples, T = sequence_length. Each is padded on the right with the token that ends answers; one with more
than T + 1 tokens, the last of which is only a target, is left out. So a sample depends on its number and the
data seed alone, and a batch of any of them has the same width.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from data.batch import Batch
from data.bins import identity_of
from data.examples import ChatExamples, Examples, ExampleSplits, PairExamples, Prompt, PromptExamples
from data.order import SampleOrder
from data.vocabulary import described, other_tokens
from errors import UserError

E = TypeVar("E", bound=Examples)


class ExampleSet(Generic[E]):
    """The examples of a split that fit, numbered from 0, as an EvalSet.

    numbers: of each in the split. limit: the largest of `lengths` (tokens of all examples) that fits.
    Raises UserError where none does.
    """

    def __init__(
        self, examples: E, sequence_length: int, stop: int, lengths: NDArray[np.int64], limit: int
    ) -> None:
        self.examples, self.sequence_length, self.stop = examples, sequence_length, stop
        self.numbers = np.flatnonzero(lengths <= limit)
        self.left_out = len(examples) - self.numbers.size
        if not self.numbers.size:
            raise UserError(
                f"{examples.path}: none of its {len(examples):,} examples fits, the shortest has"
                f" {lengths.min():,} tokens and {limit:,} are the most (--sequence_length {sequence_length})"
            )

    def __len__(self) -> int:
        return int(self.numbers.size)

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """Of examples of this set (N,). Raises UserError."""
        raise NotImplementedError("a set must say what its batches are")

    def items(self, numbers: NDArray[np.int64]) -> int:
        """Batch.count of these examples (N,)."""
        return int(numbers.size)

    def describe(self) -> str:
        left_out = f"; {self.left_out:,} are too long and left out" if self.left_out else ""
        return f"{len(self):,} examples in {self.examples.path}{left_out}"

    def _row(self, width: int, *parts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Parts one after the other, padded to a width."""
        row = np.full(width, self.stop, dtype=np.int64)
        tokens = np.concatenate(parts)
        row[: tokens.size] = tokens
        return row


class SftSet(ExampleSet[ChatExamples]):
    """`inputs`, `targets` (N, T) int64, `counted` (N, T) bool: which targets are of an answer. Batch.count is
    the number of those.
    """

    def __init__(self, examples: ChatExamples, sequence_length: int, stop: int) -> None:
        super().__init__(examples, sequence_length, stop, examples.lengths, sequence_length + 1)
        self.counts = examples.counts[self.numbers]

    def items(self, numbers: NDArray[np.int64]) -> int:
        return int(self.counts[numbers].sum())

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        width = self.sequence_length + 1
        rows = np.full((numbers.size, width), self.stop, dtype=np.int64)
        counted = np.zeros((numbers.size, width), dtype=bool)
        for row, number in enumerate(self.numbers[numbers].tolist()):
            tokens, of_answers = self.examples.example(number)
            rows[row, : tokens.size] = tokens
            counted[row, : tokens.size] = of_answers
        found = torch.from_numpy(rows)
        tensors = {
            "inputs": found[:, :-1],
            "targets": found[:, 1:],
            "counted": torch.from_numpy(counted)[:, 1:],
        }
        return Batch(tensors, self.items(numbers))


class PairSet(ExampleSet[PairExamples]):
    """`chosen`, `rejected` (N, T+1) int64: the prompt and an answer. `chosen_mask`, `rejected_mask` (N, T)
    bool: which of the tokens from the second on are of the answer. Batch.count is N.
    """

    def __init__(self, examples: PairExamples, sequence_length: int, stop: int) -> None:
        super().__init__(examples, sequence_length, stop, examples.longest, sequence_length + 1)

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        width = self.sequence_length + 1
        tensors = {}
        found = [self.examples.example(number) for number in self.numbers[numbers].tolist()]
        for place, name in enumerate(("chosen", "rejected"), start=1):
            rows = [self._row(width, example[0], example[place]) for example in found]
            begins = np.array([example[0].size for example in found])[:, None]
            ends = begins + np.array([example[place].size for example in found])[:, None]
            places = np.arange(1, width)
            tensors[name] = torch.from_numpy(np.stack(rows))
            tensors[f"{name}_mask"] = torch.from_numpy((begins <= places) & (places < ends))
        return Batch(tensors, int(numbers.size))


class PromptSet(ExampleSet[PromptExamples]):
    """`prompts` (N, P) int64, P = T - completion_tokens; `lengths` (N,) of the prompts; `numbers` (N,), by
    which `prompt` finds them; `samples` (N,), of a set the same as the numbers that were asked for.
    Batch.count is N.
    """

    def __init__(
        self, examples: PromptExamples, sequence_length: int, stop: int, completion_tokens: int
    ) -> None:
        self.width = sequence_length - completion_tokens
        if self.width < 1:
            raise UserError(
                f"--completion_tokens {completion_tokens} leaves no room for a prompt in --sequence_length"
                f" {sequence_length}"
            )
        super().__init__(examples, sequence_length, stop, examples.lengths, self.width)

    def prompt(self, number: int) -> Prompt:
        """Of a number in `numbers` of a batch."""
        return self.examples.example(number)

    def batch(self, numbers: NDArray[np.int64], samples: NDArray[np.int64] | None = None) -> Batch:
        """samples: number of each in a run."""
        chosen = self.numbers[numbers]
        found = [self.examples.segment(number) for number in chosen.tolist()]
        rows = [self._row(self.width, tokens) for tokens in found]
        tensors = {
            "prompts": torch.from_numpy(np.stack(rows)),
            "lengths": torch.from_numpy(self.examples.lengths[chosen]),
            "numbers": torch.from_numpy(chosen),
            "samples": torch.from_numpy(numbers if samples is None else samples),
        }
        return Batch(tensors, int(numbers.size))


S = TypeVar("S", bound=ExampleSet[Any])


class ExampleSource(Generic[S]):
    """The training examples that fit as a BatchSource: without replacement within an epoch, in the order of
    data/order.py.
    """

    def __init__(self, examples: S, splits: ExampleSplits[Any], data_seed: int) -> None:
        self.set, self.splits, self.data_seed = examples, splits, data_seed
        self.order = SampleOrder(len(examples), data_seed)

    def samples(self, step: int, first: int, count: int) -> Batch:
        """As BatchSource.samples. Raises UserError for a token that the vocabulary lacks."""
        return self.set.batch(self.order.windows(first, count))

    def items(self, step: int, first: int, count: int) -> int:
        return self.set.items(self.order.windows(first, count))

    def identity(self) -> dict[str, Any]:
        return identity_of(self.splits.folder) or {}

    def size(self) -> dict[str, int]:
        return {"train_tokens": int(self.splits.train.tokens.size)}

    def parts(self) -> dict[str, Any]:
        return {"vocabulary": asdict(described(self.splits.meta))}

    def differs(self, state: dict[str, Any]) -> str | None:
        differ = other_tokens(state, self.splits.meta, self.splits.folder)
        return f"{differ}: its embeddings begin as those of other tokens" if differ else None

    def describe(self, first: int, count: int, more: bool) -> str:
        chosen = self.set.numbers[self.order.windows(first, count)]
        return f"examples {', '.join(map(str, chosen))}{', ...' if more else ''} of the training split"

    def first_lines(self, samples: int) -> list[str]:
        """What a run of so many samples reads, and what it leaves out."""
        return [f"data: {self.set.describe()}; {samples / len(self.set):.2f} epochs to come"]


class SftSource(ExampleSource[SftSet]):
    """Batches are those of SftSet."""

    def __init__(self, splits: ExampleSplits[ChatExamples], sequence_length: int, data_seed: int) -> None:
        super().__init__(SftSet(splits.train, sequence_length, splits.stop), splits, data_seed)


class PairSource(ExampleSource[PairSet]):
    """Batches are those of PairSet."""

    def __init__(self, splits: ExampleSplits[PairExamples], sequence_length: int, data_seed: int) -> None:
        super().__init__(PairSet(splits.train, sequence_length, splits.stop), splits, data_seed)


class PromptSource(ExampleSource[PromptSet]):
    """Batches are those of PromptSet, `samples` the numbers of the samples in the run."""

    def __init__(
        self,
        splits: ExampleSplits[PromptExamples],
        sequence_length: int,
        completion_tokens: int,
        data_seed: int,
    ) -> None:
        prompts = PromptSet(splits.train, sequence_length, splits.stop, completion_tokens)
        super().__init__(prompts, splits, data_seed)

    def prompt(self, number: int) -> Prompt:
        return self.set.prompt(number)

    def samples(self, step: int, first: int, count: int) -> Batch:
        numbers = np.arange(first, first + count, dtype=np.int64)
        return self.set.batch(self.order.windows(first, count), numbers)
