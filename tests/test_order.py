"""The order of samples: each once an epoch, the same for ever."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data import SampleOrder
from data.order import splitmix64, splitmix64_array

SEEDS = st.integers(0, 2**63 - 1)


@given(st.integers(1, 3000), SEEDS, st.integers(0, 1000))
def test_every_window_comes_once_an_epoch(n, seed, epoch):
    assert np.array_equal(np.sort(SampleOrder(n, seed).windows(epoch * n, n)), np.arange(n))


@given(st.integers(20, 2000), SEEDS, st.integers(0, 1000))
def test_epochs_differ(n, seed, epoch):
    order = SampleOrder(n, seed)
    assert not np.array_equal(order.windows(epoch * n, n), order.windows((epoch + 1) * n, n))


@given(st.integers(20, 2000), SEEDS, SEEDS)
def test_seeds_differ(n, one, other):
    assume(one != other)
    assert not np.array_equal(SampleOrder(n, one).windows(0, n), SampleOrder(n, other).windows(0, n))


@given(st.integers(1, 500), SEEDS, st.integers(0, 200))
def test_seeking_equals_iterating(n, seed, first):
    iterated = SampleOrder(n, seed).windows(0, first + 5)[first:]
    assert np.array_equal(SampleOrder(n, seed).windows(first, 5), iterated)


@given(st.integers(1, 500), SEEDS, st.integers(0, 10**15), st.lists(st.integers(0, 40), max_size=8))
def test_the_cut_into_pieces_does_not_matter(n, seed, first, sizes):
    order, pieces, at = SampleOrder(n, seed), [], first
    for size in sizes:
        pieces.append(order.windows(at, size))
        at += size
    assert np.array_equal(np.concatenate([np.empty(0, np.int64), *pieces]), order.windows(first, at - first))


@pytest.mark.parametrize(
    ("n", "seed", "first", "expected"),
    [
        (1000, 2, 0, [645, 60, 872, 715, 378, 172, 746, 852, 622, 51, 465, 968]),
        (1000, 2, 1000, [895, 188, 710, 580, 602, 86, 179, 925, 360, 818, 2, 28]),
        (7, 0, 0, [1, 6, 3, 4, 5, 2, 0, 0, 3, 6, 2, 5, 1, 4, 3, 4, 5, 1, 2, 0, 6]),
        (35_000_000, 2, 0, [18899210, 27695302, 11614224, 29259099, 28753674, 30256774]),
        (3, 2**63 - 1, 10**15, [1, 0, 2, 0, 1, 0]),
    ],
)
def test_order_never_changes(n, seed, first, expected):
    assert SampleOrder(n, seed).windows(first, len(expected)).tolist() == expected


def test_order_does_not_follow_the_file():
    windows = SampleOrder(100_000, 2).windows(0, 100_000)
    assert abs(np.corrcoef(windows, np.arange(100_000))[0, 1]) < 0.02


def test_order_is_spread_evenly_over_the_file():
    counts, _ = np.histogram(SampleOrder(100_000, 2).windows(0, 10_000), bins=10, range=(0, 100_000))
    assert counts.min() > 850 and counts.max() < 1150


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_mixing_an_array_equals_mixing_its_numbers(values):
    assert splitmix64_array(np.array(values, dtype=np.uint64)).tolist() == [
        splitmix64(value) for value in values
    ]
