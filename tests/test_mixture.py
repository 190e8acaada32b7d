"""Mixtures of sources: weights, whose turn a sample is, and which of its windows."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from config.mixture import (
    EPOCHS,
    RANDOM,
    SAMPLINGS,
    effective_weights,
    is_mixture,
    normalised,
    parse_mixture,
)
from data.bins import TokenWindows
from data.mixture import MixtureSource, Turns
from errors import UserError

THIRDS = [1 / 3, 1 / 7, 1 - 1 / 3 - 1 / 7]
WEIGHTS = {"wiki": 0.784, "roam": 0.196, "primer": 0.02}
BASES = {"wiki": 0, "roam": 1_000, "primer": 2_000}  # each source has tokens of its own
SIZES = {"wiki": 400, "roam": 90, "primer": 41}
LENGTH = 8


def source(sampling: str, seed: int = 1, weights: dict[str, float] = WEIGHTS) -> MixtureSource:
    windows = {}
    for name in weights:
        tokens = (BASES[name] + np.arange(SIZES[name])).astype("<u2")
        windows[name] = TokenWindows(tokens, LENGTH)
    return MixtureSource(windows, weights, seed, sampling)


# weights


def test_a_mixture_is_told_from_a_name() -> None:
    assert is_mixture("wiki=0.5,roam=0.5")


@pytest.mark.parametrize("dataset", ["stdlib", "/data/a=b", "./x=1"])
def test_names_and_paths_are_no_mixtures(dataset: str) -> None:
    assert not is_mixture(dataset)


def test_weights_are_read_in_their_order() -> None:
    assert list(parse_mixture("wiki=0.784, roam=0.196,primer=.02").items()) == list(WEIGHTS.items())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("wiki=0.5,roam", "'roam' is not NAME=WEIGHT"),
        ("wiki=half", "'wiki=half' is not NAME=WEIGHT"),
        ("=1", "'=1' is not NAME=WEIGHT"),
        ("wiki=0.5,wiki=0.5", "the source wiki is named twice"),
        ("wiki=1,", "'' is not NAME=WEIGHT"),
    ],
)
def test_what_is_no_mixture_is_refused(text: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        parse_mixture(text)


def test_weights_are_scaled_where_it_is_asked_for() -> None:
    assert normalised({"a": 3.0, "b": 1.0}) == {"a": 0.75, "b": 0.25}


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(UserError) as raised:
        effective_weights({"a": -1.0, "b": math.nan, "c": 2.0}, {"a": 4, "d": 100}, 9)
    lines = str(raised.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "the weight of a is -1.0",
        "the weight of b is nan",
        "no weight is given for d",
        "sources of the mixture are missing",
        "sources with fewer than the 9 tokens that a sequence needs",
    ]


def test_a_weight_that_would_never_be_read_is_refused() -> None:
    with pytest.raises(UserError, match="a weight of 1e-07 is less than one sample in 131072"):
        Turns([1 - 1e-7, 1e-7])


# turns


@pytest.mark.parametrize(
    "weights", [list(WEIGHTS.values()), THIRDS, [1.0], [0.0, 1.0], [0.1] * 10, [0.999, 0.001]], ids=str
)
def test_every_prefix_has_its_shares_to_less_than_one_sample(weights: list[float]) -> None:
    count = 100_000
    sources, _ = Turns(weights).locate(0, count)
    prefixes = np.arange(1, count + 1)
    for number, weight in enumerate(weights):
        assert np.abs(np.cumsum(sources == number) - prefixes * weight).max() <= 1.0


@pytest.mark.parametrize("given", [(1, 1, 1), (784, 20), (3, 2, 0, 2)], ids=str)
def test_shares_of_whole_numbers_drift_nowhere(given: tuple[int, ...]) -> None:
    weights = list(normalised({str(i): float(number) for i, number in enumerate(given)}).values())
    turns, first, count = Turns(weights), 10**8, 1000
    sources, ranks = turns.locate(first, count)
    for number, weight in enumerate(weights):
        mine = np.flatnonzero(sources == number)
        assert np.abs(ranks[mine] - (first + mine) * weight).max(initial=0) <= 1.0


def test_samples_of_a_source_are_counted_through_all_periods() -> None:
    turns = Turns([0.75, 0.25])
    sources, ranks = turns.locate(0, 5 * turns.period)
    for number in (0, 1):
        of_it = ranks[sources == number]
        assert of_it.tolist() == list(range(of_it.size))


# samples


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_samples_do_not_depend_on_the_cut(sampling: str) -> None:
    mixture = source(sampling)
    whole = mixture.samples(0, 100, 60)["inputs"]
    parts = [mixture.samples(0, first, 12)["inputs"] for first in range(100, 160, 12)]
    assert whole.tolist() == list(itertools.chain(*(part.tolist() for part in parts)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_targets_follow_the_inputs(sampling: str) -> None:
    batch = source(sampling).samples(0, 0, 50)
    assert (batch["targets"] == batch["inputs"] + 1).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_another_seed_gives_another_order(sampling: str) -> None:
    batches = [source(sampling, seed).samples(0, 0, 50)["inputs"] for seed in (1, 2)]
    assert (batches[0] != batches[1]).any()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_seek_takes_under_a_millisecond(sampling: str) -> None:
    mixture = source(sampling)
    least = math.inf
    for _ in range(20):
        begin = time.perf_counter()
        mixture.places(32 * 10**9, 8)
        least = min(least, time.perf_counter() - begin)
    assert least < 1e-3


def test_each_source_comes_once_an_epoch() -> None:
    mixture = source(EPOCHS)
    starts = [place.start for place in mixture.places(0, 4_000) if place.source == "wiki"]
    n_windows = (SIZES["wiki"] - 1) // LENGTH
    epochs = [starts[at : at + n_windows] for at in range(0, len(starts) - n_windows, n_windows)]
    assert all(sorted(epoch) == [LENGTH * n for n in range(n_windows)] for epoch in epochs)


def test_epochs_of_a_source_differ() -> None:
    starts = [place.start for place in source(EPOCHS).places(0, 1_000) if place.source == "wiki"]
    assert starts[:49] != starts[49:98]


def test_the_order_of_a_source_does_not_depend_on_the_others() -> None:
    alone = source(EPOCHS, weights={"wiki": 1.0}).places(0, 40)
    among = [place for place in source(EPOCHS).places(0, 100) if place.source == "wiki"][:40]
    assert alone == among


def test_random_shares_are_within_four_standard_errors() -> None:
    count = 100_000
    drawn = [place.source for place in source(RANDOM).places(0, count)]
    for name, weight in WEIGHTS.items():
        error = math.sqrt(weight * (1 - weight) / count)
        assert abs(drawn.count(name) / count - weight) < 4 * error


def test_random_windows_begin_everywhere() -> None:
    starts = {place.start for place in source(RANDOM).places(0, 100_000) if place.source == "primer"}
    assert starts == set(range(SIZES["primer"] - LENGTH))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_source_of_weight_0_is_never_read(sampling: str) -> None:
    mixture = source(sampling, weights={"wiki": 0.0, "roam": 1.0})
    assert {place.source for place in mixture.places(0, 500)} == {"roam"}


def test_a_place_says_where_to_look() -> None:
    mixture = source(EPOCHS, weights={"wiki": 1.0})
    start = mixture.places(7, 1)[0].start
    assert mixture.describe(7, 1, more=True) == f"wiki from token {start}, ..."
