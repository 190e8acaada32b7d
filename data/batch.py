"""What a training step is made of, whatever is trained: batches, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Named tensors, and `count`: how many items (tokens, pairs, windows) their mean loss is a mean of, known
    before the forward pass; at least 1.
    """

    tensors: dict[str, Tensor]
    count: int

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; to GPUs through pinned memory, without waiting."""
        if device.type != "cuda":
            return self
        moved = {
            name: value.pin_memory().to(device, non_blocking=True) for name, value in self.tensors.items()
        }
        return Batch(moved, self.count)


class EvalSet(Protocol):
    """Samples to measure on, numbered from 0 to its length less one."""

    def __len__(self) -> int: ...

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """The samples of these numbers (N,). Raises UserError."""
        ...


class BatchSource(Protocol):
    """The samples of a run, numbered from 0. A sample is a pure function of its number and the data seed.

    Only the loop splits a step into micro-batches and processes, so nothing here may depend on that split,
    nor on what was read before.
    """

    def samples(self, step: int, first: int, count: int) -> Batch:
        """Samples first .. first + count - 1 of the run, which are of this step. Raises UserError."""
        ...

    def items(self, step: int, first: int, count: int) -> int | None:
        """How many items (Batch.count) these samples have, all of a step; None where only the batches say."""
        ...

    def identity(self) -> dict[str, Any]:
        """What distinguishes these data from others, by their content; empty where nothing is recorded."""
        ...

    def size(self) -> dict[str, int]:
        """Further numbers of the data that a checkpoint keeps."""
        ...

    def parts(self) -> dict[str, Any]:
        """Parts of a checkpoint that say what the data stand for; plain values."""
        ...

    def differs(self, state: dict[str, Any]) -> str | None:
        """Why weights of this checkpoint may not mean the same on these data; None where they do."""
        ...

    def describe(self, first: int, count: int, more: bool) -> str:
        """Where samples are in the data, so that a person can find them. more: others follow these."""
        ...


class PlainSource:
    """For sources of your own: everything but `samples` has an answer that claims nothing."""

    def samples(self, step: int, first: int, count: int) -> Batch:
        raise NotImplementedError("a source must say what its samples are")

    def items(self, step: int, first: int, count: int) -> int | None:
        return None

    def identity(self) -> dict[str, Any]:
        return {}

    def size(self) -> dict[str, int]:
        return {}

    def parts(self) -> dict[str, Any]:
        return {}

    def differs(self, state: dict[str, Any]) -> str | None:
        return None

    def describe(self, first: int, count: int, more: bool) -> str:
        return f"of {type(self).__name__}"
