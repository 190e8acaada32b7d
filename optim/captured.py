"""Steps of a generation, and micro-batches of a training, as CUDA graphs: their hundreds of kernels are
launched at once.

A graph repeats its kernels on the memory that they were captured with, so what goes in has places of its own.
Keys of a generation are read from a fixed number of slots: which of these a query sees, positions on the
device say, as they do for sequences of unequal length. There is a graph for each number of slots, and for
each shape of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.batch import Batch
from errors import OwnError
from models.settings import ModelSettings

BUCKET = 128  # slots: the numbers of slots are multiples of it
WARM = 3  # micro-batches of a shape before it is captured: what is made at a first use is not of the graph


def can_be_captured(settings: ModelSettings, device: torch.device) -> bool:
    """Whether a step's shapes depend on no data, on a device that has graphs."""
    return device.type == "cuda" and settings.variant.policy == "fixed"


class CapturedSteps:
    """One token for each of several sequences, again and again, with the keys and values of those before."""

    def __init__(
        self, run: Callable[[Tensor, Tensor, int], Tensor], count: int, longest: int, device: torch.device
    ) -> None:
        """run(tokens, positions, slots): logits (count, V) after one token of each sequence; keys are read
        from so many slots; tokens and positions are (count, 1). longest: most slots.
        """
        self.run, self.longest = run, longest
        self.tokens, self.positions = torch.zeros(2, count, 1, dtype=torch.int64, device=device).unbind()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._stream: torch.cuda.Stream | None = None  # one for all, as they share memory

    def __call__(
        self, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], used: int
    ) -> Tensor:
        """Logits (count, V), which the next call overwrites. used: slots in use after it. Raises RuntimeError
        where the step cannot be captured.
        """
        slots = min(-(-used // BUCKET) * BUCKET, self.longest)
        self.tokens.copy_(torch.tensor(tokens))
        self.positions.copy_(torch.tensor(positions))
        if slots not in self._graphs:
            self._graphs[slots] = self._captured(slots)
        graph, logits = self._graphs[slots]
        graph.replay()
        return logits

    def _captured(self, slots: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph, and where it leaves the logits. What it computes may be computed more than once."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        stream = self._stream
        _on_stream(stream, lambda: self.run(self.tokens, self.positions, slots))
        shared = next((other.pool() for other, _ in self._graphs.values()), None)
        return _capture(stream, shared, lambda: self.run(self.tokens, self.positions, slots))


@dataclass
class _Shape:
    """Micro-batches of one shape. batch, share: what the graph reads. runs: how many have been run without a
    graph. captured: the graph, and where it leaves the loss.
    """

    batch: Batch
    share: Tensor
    runs: int = 0
    captured: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> _Shape:
        places = {name: torch.empty_like(value, device=device) for name, value in batch.tensors.items()}
        return cls(Batch(places, batch.count), torch.empty((), device=device))

    def fill(self, batch: Batch, share: float) -> None:
        for name, value in batch.tensors.items():
            self.batch[name].copy_(value.pin_memory(), non_blocking=True)
        self.share.fill_(share)


class CapturedBatches:
    """Forward and backward passes of micro-batches.

    A graph adds to the gradients that are there when it is captured: from then on they may be zeroed, and not
    be dropped. It repeats kernels alone: what Python does in a pass is done while it is captured, once.
    """

    def __init__(self, run: Callable[[Batch, Tensor], Tensor], device: torch.device) -> None:
        """run(batch, share): the loss of a batch over share, a scalar; its gradients are added to those that
        are there.
        """
        self.run, self.device = run, device
        self._stream = torch.cuda.Stream()
        self._shapes: dict[tuple[tuple[str, torch.Size, torch.dtype], ...], _Shape] = {}

    def __call__(self, batch: Batch, share: float) -> Tensor:
        """The loss of a batch on the CPU, over share. Raises OwnError where it cannot be captured: a capture
        that failed leaves CUDA's generator unfit for dropout.
        """
        key = tuple((name, value.shape, value.dtype) for name, value in batch.tensors.items())
        if key not in self._shapes:
            self._shapes[key] = _Shape.of(batch, self.device)
        shape = self._shapes[key]
        shape.fill(batch, share)
        if shape.runs < WARM:
            shape.runs += 1
            return _on_stream(self._stream, lambda: self.run(shape.batch, shape.share))
        if shape.captured is None:
            shape.captured = self._capture(shape)
        graph, loss = shape.captured
        graph.replay()
        return loss.clone()

    def _capture(self, shape: _Shape) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        shared = next((other.captured[0].pool() for other in self._shapes.values() if other.captured), None)
        try:
            return _capture(self._stream, shared, lambda: self.run(shape.batch, shape.share))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise OwnError(
                f"--cuda_graphs: a micro-batch cannot be captured ({why(error)}); leave --cuda_graphs out"
            ) from None


def _on_stream(stream: torch.cuda.Stream, work: Callable[[], Tensor]) -> Tensor:
    """What `work` makes there, after all before it and before all after it."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        made = work()
    torch.cuda.current_stream().wait_stream(stream)
    return made


def _capture(
    stream: torch.cuda.Stream, pool: Any, work: Callable[[], Tensor]
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of what `work` does, and where it leaves its result. pool: of graphs whose memory it may
    share, as their results are read before the next is replayed; None for one of its own.
    """
    graph = torch.cuda.CUDAGraph()
    # a capture that fails leaves its stream the current one; other threads may use the device meanwhile
    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        made = work()
    return graph, made


def why(error: RuntimeError) -> str:
    """In one line, why a capture failed; CUDA's own error hides the one that it began with."""
    return str(error.__context__ or error).splitlines()[0]
