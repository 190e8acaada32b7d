"""Which window of the data a sample is: a pure function of (data_seed, sample number), nothing to keep or to
replay.

Sample i of a run is in epoch i // n; the n windows of an epoch are permuted by a Feistel network keyed by
the seed and the epoch, walked until it lands inside n (Black and Rogaway 2002). So every window comes once an
epoch, seeking costs nothing, and neither the number of processes nor the cut into micro-batches can change
the order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
_MASK = (1 << 64) - 1


def splitmix64(value: int) -> int:
    """Finaliser of splitmix64: 64 bits in, 64 well-stirred bits out."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def splitmix64_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`splitmix64` for each element; uint64 arithmetic wraps."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(values: NDArray[np.uint64], n: int, key: int) -> NDArray[np.uint64]:
    """Images of values in [0, n) under the permutation of [0, n) that the key names."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    round_keys = [np.uint64(splitmix64(key ^ splitmix64(number))) for number in range(ROUNDS)]
    out = values.copy()
    outside = np.arange(out.size)
    while outside.size:
        left, right = out[outside] >> half, out[outside] & low
        for round_key in round_keys:
            left, right = right, left ^ (splitmix64_array(right ^ round_key) & low)
        out[outside] = (left << half) | right
        outside = outside[out[outside] >= np.uint64(n)]
    return out


class SampleOrder:
    """Windows of the samples of a run over n windows, without replacement within an epoch."""

    def __init__(self, n_windows: int, data_seed: int) -> None:
        assert n_windows > 0, "no windows"
        self.n_windows, self.data_seed = n_windows, data_seed

    def windows(self, first: int, count: int) -> NDArray[np.int64]:
        """Window numbers of samples first .. first + count - 1."""
        return self.at(np.arange(first, first + count, dtype=np.uint64))

    def at(self, samples: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Window numbers of samples (N,), in any order."""
        epochs, places = samples // np.uint64(self.n_windows), samples % np.uint64(self.n_windows)
        out = np.empty(samples.size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = permute(
                places[here], self.n_windows, splitmix64(self.data_seed) ^ splitmix64(~int(epoch) & _MASK)
            ).astype(np.int64)
        return out
