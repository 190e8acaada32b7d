"""Verdicts over seeds: known quantiles, known intervals, and what cannot be decided."""

from __future__ import annotations

import math

import pytest

from report.verdicts import AGAINST, CONFIRMED, UNDECIDED, holm, judge, quantile, two_sided

# two-sided 95% of published tables
T95 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 30: 2.0423}


@pytest.mark.parametrize("degrees", T95)
def test_quantiles_are_those_of_published_tables(degrees: int) -> None:
    assert quantile(degrees) == pytest.approx(T95[degrees], abs=6e-5)


@pytest.mark.parametrize("degrees", T95)
def test_a_quantile_has_its_own_chance(degrees: int) -> None:
    assert two_sided(quantile(degrees), degrees) == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "margin", "word"),
    [
        ([0.31, 0.33, 0.29], None, CONFIRMED),
        ([-0.31, -0.33, -0.29], None, AGAINST),
        ([0.3, -0.1, 0.2], None, UNDECIDED),
        ([0.10, 0.11], None, CONFIRMED),
        ([0.10, 0.15], None, UNDECIDED),
        ([0.1, -0.1], None, UNDECIDED),
        ([0.001, -0.001, 0.0005], 0.01, CONFIRMED),
        ([0.10, 0.11, 0.12], 0.01, AGAINST),
        ([-0.10, -0.11, -0.12], 0.01, AGAINST),
        ([0.009, 0.012, 0.004], 0.01, UNDECIDED),
    ],
)
def test_the_side_of_the_interval_is_the_verdict(
    differences: list[float], margin: float | None, word: str
) -> None:
    assert judge(dict(enumerate(differences)), margin).word == word


def test_the_interval_is_students() -> None:
    found = judge({0: 0.03, 1: 0.05, 2: 0.04})
    assert found.mean == pytest.approx(0.04)
    assert found.half == pytest.approx(T95[2] * 0.01 / math.sqrt(3), abs=1e-6)


def test_an_interval_that_ends_at_zero_is_undecided() -> None:
    spread = quantile(1) / (quantile(1) - 1)  # of two values whose interval begins at 0
    assert judge({0: 1.0, 1: 1.0}).word == UNDECIDED
    low, high = 1 - 1 / spread, 1 + 1 / spread
    assert judge({0: low - 0.1, 1: high + 0.1}).word == UNDECIDED


@pytest.mark.parametrize(
    ("differences", "why"),
    [
        ([], "no seed has both models"),
        ([0.3], "one seed has no spread"),
        ([0.0, 0.0, 0.0], "all seeds gave the same difference"),
        ([0.2, 0.2], "all seeds gave the same difference"),
    ],
)
def test_what_lacks_data_is_undecided_and_says_why(differences: list[float], why: str) -> None:
    found = judge(dict(enumerate(differences)))
    assert found.word == UNDECIDED and why in found.why and found.p is None


def test_seeds_that_agree_are_counted() -> None:
    found = judge({3: 0.2, 5: -0.1, 9: 0.3})
    assert (found.agree, found.seeds) == (2, 3)


def test_p_below_a_twentieth_is_what_the_interval_says() -> None:
    for differences in ([0.10, 0.11], [0.10, 0.15], [0.3, 0.4, 0.2], [0.3, -0.1, 0.2]):
        found = judge(dict(enumerate(differences)))
        assert found.p is not None and (found.p < 0.05) == (found.word != UNDECIDED)


def test_holms_correction_is_the_known_one() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
