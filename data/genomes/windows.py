"""Batches of a prepared set of genomes, for training and for evaluation.

N pairs, S scales, W windows, n samples. Of a batch: `x` (N, 2, S, W, n) float32 after log1p, `tokens`
(N, W + 1) int64, BOS first; its count is that of the windows, N * W.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.batch import Batch, PlainSource
from data.genomes.features import as_input, over_scales
from data.genomes.store import Examples, Genomes, GenomeSplits
from data.genomes.targets import sequences
from data.order import SampleOrder


class GenomeSet:
    """The examples of a split by their numbers, in the form of data.batch.EvalSet.

    workers: threads that read a batch; with 0 or 1 it is the caller's.
    """

    def __init__(self, genomes: Genomes, workers: int = 0) -> None:
        self.genomes = genomes
        self.workers = workers
        self.pool = ThreadPoolExecutor(workers) if workers > 1 else None

    def __len__(self) -> int:
        return len(self.genomes)

    def _tensors(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found: Examples = self.genomes.read(numbers)
        meta = self.genomes.meta
        x = as_input(over_scales(found.counts, meta.multipliers), meta.shares(found.missing))
        return x, sequences(found.y)

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """The examples of these numbers (N,). Raises UserError."""
        if self.pool is None:
            parts = [self._tensors(numbers)]
        else:
            parts = list(
                self.pool.map(self._tensors, np.array_split(numbers, min(self.workers, len(numbers))))
            )
        x, tokens = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        return Batch({"x": x, "tokens": tokens}, len(numbers) * self.genomes.meta.n_windows)


class GenomeSource(PlainSource):
    """Training examples, without replacement within an epoch, in the order of data/order.py."""

    def __init__(self, splits: GenomeSplits, data_seed: int, workers: int = 0) -> None:
        """workers: as GenomeSet."""
        self.splits, self.data_seed = splits, data_seed
        self.examples = GenomeSet(splits.train, workers)
        self.order = SampleOrder(len(splits.train), data_seed)

    def samples(self, step: int, first: int, count: int) -> Batch:
        """As BatchSource.samples. Raises UserError."""
        return self.examples.batch(self.order.windows(first, count))

    def items(self, step: int, first: int, count: int) -> int:
        return count * self.splits.meta.n_windows

    def identity(self) -> dict[str, Any]:
        return self.splits.identity()

    def size(self) -> dict[str, int]:
        return {"train_examples": len(self.splits.train)}

    def parts(self) -> dict[str, Any]:
        """`genomes`: what an example of these data consists of."""
        meta = self.splits.meta
        return {
            "genomes": {
                "window_size": meta.window_size,
                "sequence_length": meta.sequence_length,
                "n_samples": meta.n_samples,
                "multipliers": list(meta.multipliers),
                "masked": meta.masked,
            }
        }

    def describe(self, first: int, count: int, more: bool) -> str:
        train = self.splits.train
        places = []
        for number in self.order.windows(first, count):
            entry = train.index[number]
            places.append(f"{train.files[entry['file']]['path']} {entry['first']}-{entry['second']}")
        return f"pairs {', '.join(places)}{', ...' if more else ''}"
