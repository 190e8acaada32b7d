"""Curves of the rows of metrics.jsonl, and the few points that stand for many of them."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeGuard

from optim.evaluations import as_float

POINTS = 2000  # at most so many of a curve are drawn
FEW_IN_A_STRETCH = 20  # one in so many may be a spike
SPIKES = 3  # at most so many upwards, and downwards, in a stretch

Point = tuple[float, float]  # step and value
Spike = tuple[float, float, float]  # step, and the values at its foot and tip


@dataclass(frozen=True)
class Curve:
    """Values by step, in order of step."""

    steps: Sequence[float]
    values: Sequence[float]

    def at(self, step: float) -> float | None:
        place = bisect_left(self.steps, step)
        return self.values[place] if self.steps[place : place + 1] == [step] else None

    def __len__(self) -> int:
        return len(self.steps)


def thin(curve: Curve, limit: int = POINTS) -> Curve:
    """The whole, or at most `limit` of its points: of equal stretches the lowest and the highest, so that
    no spike is lost.
    """
    if len(curve) <= limit:
        return curve
    stretch = math.ceil(len(curve) / (limit // 2))
    kept: list[int] = []
    for first in range(0, len(curve), stretch):
        part = curve.values[first : first + stretch]
        kept += sorted((first + part.index(min(part)), first + part.index(max(part))))
    return Curve([curve.steps[place] for place in kept], [curve.values[place] for place in kept])


def band(curve: Curve, limit: int) -> tuple[Curve, Curve, list[Spike]]:
    """A noisy curve: the highest and the lowest of equal stretches, and spikes that stand out from these.

    An area with a spike in its edge would be as wide there as the stretch.
    """
    stretch = math.ceil(len(curve) / (limit // 2))
    edges: tuple[list[Point], list[Point]] = ([], [])
    spikes: list[Spike] = []
    for first in range(0, len(curve), stretch):
        part = curve.values[first : first + stretch]
        ordered = sorted(part)
        few = len(part) // FEW_IN_A_STRETCH
        low, high = ordered[few], ordered[-1 - few]
        top, bottom = (
            ordered[bisect_right(ordered, 2 * high - low) - 1],
            ordered[bisect_left(ordered, 2 * low - high)],
        )
        for edge, outermost, foot in ((edges[0], ordered[-1], top), (edges[1], ordered[0], bottom)):
            edge.append((curve.steps[first + part.index(foot)], foot))
            if outermost != foot:
                spikes += [
                    (curve.steps[first + place], foot, tip) for place, tip in _beyond(part, foot, outermost)
                ]
    few = max(1, stretch // FEW_IN_A_STRETCH)
    begin, end = (sorted(near) for near in (curve.values[:few], curve.values[-few:]))
    upper, lower = edges
    return (
        _from_end_to_end(curve, upper, min(begin[-1], upper[0][1]), min(end[-1], upper[-1][1])),
        _from_end_to_end(curve, lower, max(begin[0], lower[0][1]), max(end[0], lower[-1][1])),
        spikes,
    )


def _beyond(part: Sequence[float], foot: float, outermost: float) -> list[tuple[int, float]]:
    """Of what is further out than `foot`, on the side of `outermost`, the SPIKES that are furthest: places
    and values.
    """
    sign = 1 if outermost > foot else -1
    out = [(place, value) for place, value in enumerate(part) if sign * (value - foot) > 0]
    return sorted(out, key=lambda each: -sign * each[1])[:SPIKES]


def _from_end_to_end(curve: Curve, edge: Sequence[Point], begin: float, end: float) -> Curve:
    """An edge that reaches from the first to the last step of its curve, with these values there."""
    steps, values = zip(*edge, strict=True)
    return Curve([curve.steps[0], *steps, curve.steps[-1]], [begin, *values, end])


def curves(rows: Sequence[dict[str, Any]], keys: Iterable[str]) -> dict[str, Curve]:
    """Of each key; of a step that was trained again the newest row counts. rows: of one kind."""
    steps = _values(rows, "step")
    are_in_order = _are_plain(steps) and all(map(operator.lt, steps, steps[1:]))
    found = {}
    for key in keys:
        values = _values(rows, key)
        found[key] = Curve(steps, values) if are_in_order and _are_plain(values) else _in_order(steps, values)
    return found


def _in_order(steps: Sequence[Any], values: Sequence[Any]) -> Curve:
    found = {}
    for each, raw in zip(steps, values, strict=True):
        step, value = as_float(each), as_float(raw)
        if step is not None and value is not None:
            found[step] = value
    ordered = sorted(found)
    return Curve(ordered, [found[step] for step in ordered])


def _values(rows: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """Of each row, or of what depends on the clock in it; None where it has none."""
    with suppress(KeyError):
        return [*map(operator.itemgetter(key), rows)]
    with suppress(KeyError, TypeError):
        return [row[key] if key in row else row["time"][key] for row in rows]
    clocks = [row.get("time") for row in rows]
    return [
        row.get(key, clock.get(key) if isinstance(clock, dict) else None)
        for row, clock in zip(rows, clocks, strict=True)
    ]


def _are_plain(values: Sequence[Any]) -> TypeGuard[Sequence[float]]:
    """Whether all are numbers that `as_float` lets pass, found out at once; it may say no where they are
    large.
    """
    return {*map(type, values)} <= {int, float} and as_float(sum(map(abs, values))) is not None
