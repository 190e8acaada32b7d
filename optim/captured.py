"""Steps of a generation as CUDA graphs: the hundreds of kernels of a token are launched at once.

A graph repeats its kernels on the memory that they were captured with, so tokens and positions have places of
their own, and keys are read from a fixed number of slots. Which of these a query sees, positions on the
device say, as they do for sequences of unequal length. There is a graph for each number of slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.settings import ModelSettings

BUCKET = 128  # slots: the numbers of slots are multiples of it


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
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is made at a first use is not of the graph
            self.run(self.tokens, self.positions, slots)
        torch.cuda.current_stream().wait_stream(stream)
        graph: Any = torch.cuda.CUDAGraph()
        shared = next((other.pool() for other, _ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=shared):
            logits = self.run(self.tokens, self.positions, slots)
        return graph, logits
