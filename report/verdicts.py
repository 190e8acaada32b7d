"""What trainings with several seeds say about a claim that one model is better than another.

    verdict = judge({0: 0.03, 1: 0.05, 2: 0.04})        # by seed: how much better the first is, nats a token
    verdict.word, verdict.mean, verdict.low, verdict.high, verdict.p

Each difference is between trainings of the same seed. Intervals are Student's t intervals of their mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
CONFIRMED, AGAINST, UNDECIDED = "confirmed", "not confirmed", "undecided"
ABSENT = "not in this sweep"


def two_sided(t: float, degrees: int) -> float:
    """Chance of a |t| at least so large, of Student's t with whole degrees of freedom (Abramowitz and Stegun
    26.7.3 and 26.7.4).
    """
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    total = 0.0
    for k in range(1 + degrees % 2, degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total
    return min(max(1 - inside, 0.0), 1.0)


def quantile(degrees: int, level: float = LEVEL) -> float:
    """The t that |t| exceeds with chance 1 - level."""
    low, high = 0.0, 1.0
    while two_sided(high, degrees) > 1 - level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, degrees) > 1 - level else (low, middle)
    return high


@dataclass(frozen=True)
class Verdict:
    """mean, low, high: of the differences, nats a token; None with fewer than one or two seeds. agree: seeds
    that say the same as the claim. p: two-sided, before any correction. why: of one that is undecided for
    lack of data.
    """

    word: str
    differences: Mapping[int, float]
    agree: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    why: str = ""

    @property
    def seeds(self) -> int:
        return len(self.differences)

    @property
    def half(self) -> float | None:
        return None if self.high is None or self.mean is None else self.high - self.mean


def judge(differences: Mapping[int, float], margin: float | None = None) -> Verdict:
    """margin: of a claim that two models are alike, up to which they are."""
    values = list(differences.values())
    if margin is None:
        agree = sum(value > 0 for value in values)
    else:
        agree = sum(abs(value) < margin for value in values)
    if not values:
        return Verdict(UNDECIDED, differences, 0, why="no seed has both models")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Verdict(UNDECIDED, differences, agree, mean, why="one seed has no spread")
    spread = statistics.stdev(values) / math.sqrt(len(values))
    half = quantile(len(values) - 1) * spread
    low, high = mean - half, mean + half
    if spread <= 1e-12 * max(1.0, abs(mean)):
        why = "all seeds gave the same difference: they are no separate trainings"
        return Verdict(UNDECIDED, differences, agree, mean, low, high, why=why)
    word = _word(low, high, margin)
    return Verdict(word, differences, agree, mean, low, high, _p(mean, spread, len(values) - 1, margin))


def _word(low: float, high: float, margin: float | None) -> str:
    if margin is None:
        is_right, is_wrong = low > 0, high < 0
    else:
        is_right, is_wrong = -margin < low and high < margin, low > margin or high < -margin
    if is_right:
        return CONFIRMED
    return AGAINST if is_wrong else UNDECIDED


def _p(mean: float, spread: float, degrees: int, margin: float | None) -> float:
    """Of a difference from 0; of two that are alike, from being at least the margin apart."""
    if margin is None or abs(mean) > margin:
        return two_sided((abs(mean) - (margin or 0.0)) / spread, degrees)
    return two_sided((margin - abs(mean)) / spread, degrees)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, 1979), in the order given."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, largest = [0.0] * len(values), 0.0
    for place, number in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[number]))
        corrected[number] = largest
    return corrected
