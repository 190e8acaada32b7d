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
from data.genomes.store import Genomes, GenomeSplits
from data.genomes.targets import sequences
from data.order import SampleOrder
from errors import UserError

AHEAD = 4096  # samples


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

    def _arrays(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = self.genomes.read(numbers)
        meta = self.genomes.meta
        x = as_input(over_scales(found.up_to, meta.multipliers), meta.shares(found.missing))
        return x, sequences(found.y)

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """The examples of these numbers (N,). Raises UserError."""
        if self.pool is None:
            x, tokens = self._arrays(numbers)
        else:
            x, tokens = self._by_threads(self.pool, numbers)
        tensors = {"x": torch.from_numpy(x), "tokens": torch.from_numpy(tokens)}
        return Batch(tensors, len(numbers) * self.genomes.meta.n_windows)

    def _by_threads(
        self, pool: ThreadPoolExecutor, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        meta, size = self.genomes.meta, -(-len(numbers) // self.workers)
        x = np.empty((len(numbers), *meta.shape), dtype=np.float32)
        tokens = np.empty((len(numbers), meta.n_windows + 1), dtype=np.int64)

        def fill(first: int) -> None:
            part = slice(first, first + size)
            x[part], tokens[part] = self._arrays(numbers[part])

        list(pool.map(fill, range(0, len(numbers), size)))
        return x, tokens


class GenomeSource(PlainSource):
    """Training examples, without replacement within an epoch, in the order of data/order.py."""

    def __init__(self, splits: GenomeSplits, data_seed: int, workers: int = 0) -> None:
        """workers: as GenomeSet. Raises UserError where no example is for training."""
        if not len(splits.train):
            raise UserError(f"{splits.folder} has no examples for training")
        self.splits, self.data_seed = splits, data_seed
        self.examples = GenomeSet(splits.train, workers)
        self.order = SampleOrder(len(splits.train), data_seed)
        self.known_from, self.known = 0, np.empty(0, dtype=np.int64)  # examples of the samples from there on

    def numbers(self, first: int, count: int) -> NDArray[np.int64]:
        """The examples that samples first .. first + count - 1 of the run are."""
        begin = first - self.known_from
        if begin < 0 or begin + count > self.known.size:
            # ahead: the order of a few samples takes as long as that of many
            self.known_from, self.known, begin = first, self.order.windows(first, max(count, AHEAD)), 0
        return self.known[begin : begin + count]

    def samples(self, step: int, first: int, count: int) -> Batch:
        """As BatchSource.samples. Raises UserError."""
        return self.examples.batch(self.numbers(first, count))

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
        for number in self.numbers(first, count):
            entry = train.index[number]
            places.append(f"{train.files[entry['file']]['path']} {entry['first']}-{entry['second']}")
        return f"pairs {', '.join(places)}{', ...' if more else ''}"
