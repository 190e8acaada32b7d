"""The curves of an experiment as SVG: four panels, whose titles, units and legends a page holds once.

    body = drawing(rows, starts, limit=500)      # rows of metrics.jsonl; empty where there is nothing to draw
    svg = figure("owt2/base/run", body, has_frame=True)

A noisy curve of more points than `limit` is drawn as the area between the lowest and the highest of each
stretch, with its spikes one by one: a dense curve looks the same, and no extreme is lost. Coordinates are
whole units, of which the figure is 1200 wide.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import pairwise
from typing import Any, TypeGuard

from optim.reader import as_float

POINTS = 2000  # at most so many of a curve are drawn
# points from which they are no longer marked one by one; they are not on a page of many experiments either
CROWDED = 60
CALM = 4  # a curve that turns at no more than one in so many of its points is a line, however long
FEW_IN_A_STRETCH = 20  # one in so many may be a spike
SPIKES = 3  # at most so many upwards, and downwards, in a stretch
LOG_RANGE = 30.0  # largest over smallest gradient norm from which their axis is logarithmic
TICKS = 3  # at most so many on an axis, and one more
MARGIN = 0.05  # of the height, above and below the curves
# Okabe and Ito: for every kind of colour vision
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"

Point = tuple[float, float]  # step and value
Spike = tuple[float, float, float]  # step, and the values at its foot and tip
Place = tuple[int, int]  # in the figure


@dataclass(frozen=True)
class Curve:
    """Values by step, in order of step."""

    steps: Sequence[float]
    values: Sequence[float]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Line:
    """A curve of a panel: which rows and values, and its class in STYLE."""

    kind: str
    key: str
    style: str
    label: str
    may_be_marked: bool = False


@dataclass(frozen=True)
class Panel:
    """A system of axes; left and top: where its corner is in the figure."""

    title: str
    unit: str
    left: int
    top: int
    lines: tuple[Line, ...]
    from_zero: bool = False
    may_be_logarithmic: bool = False


WIDTH, HEIGHT = 510, 200  # of a panel
FIGURE_WIDTH, FIGURE_HEIGHT = 1200, 580
COLUMNS, ROWS = (70, 670), (60, 330)  # where panels begin
PANELS = (
    Panel(
        "loss",
        "nats per token",
        COLUMNS[0],
        ROWS[0],
        (
            Line("train", "loss", "t", "training"),
            Line("eval", "val_loss", "v", "validation", may_be_marked=True),
            Line("final", "val_loss", "w", "validation, whole split", may_be_marked=True),
        ),
    ),
    Panel(
        "learning rate", "learning rate", COLUMNS[1], ROWS[0], (Line("train", "lr", "r", "learning rate"),)
    ),
    Panel(
        "gradient norm",
        "norm before clipping",
        COLUMNS[0],
        ROWS[1],
        (Line("train", "grad_norm", "n", "gradient norm"),),
        may_be_logarithmic=True,
    ),
    Panel(
        "throughput",
        "tokens/s",
        COLUMNS[1],
        ROWS[1],
        (Line("train", "tokens_per_second", "s", "throughput"),),
        from_zero=True,
    ),
)

# no rule names an ancestor: in what <use> shows there is none
STYLE = f"""
svg {{ width: 100%; height: auto; font-size: 11px; fill: #222; }}
path {{ fill: none; stroke: currentColor; stroke-linejoin: round; stroke-linecap: round; }}
.t, .s {{ color: {BLUE}; }} .v {{ color: {ORANGE}; stroke-width: 1.5; }} .w {{ color: #000; }} .r {{ color: \
{GREEN}; }} .n {{ color: {PINK}; }}
.v.m {{ marker: url(#dot); }} .w.m {{ marker: url(#diamond); }} path.a {{ fill: currentColor; }}
.g {{ color: #ddd; }} .b {{ color: {GREY}; stroke-dasharray: 4 3; }} .c {{ text-anchor: middle; }}
.h {{ text-anchor: middle; font-size: 13px; }} .x {{ text-anchor: middle; transform: translate(0, {
    ROWS[1] + HEIGHT + 16
}px); }}
.y {{ text-anchor: end; transform: translate({COLUMNS[0] - 5}px, 4px); }} .y + .y {{ transform: \
translate({COLUMNS[1] - 5}px, 4px); }}
"""


# numbers


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


def _of_kind(rows: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    with suppress(KeyError):
        return [row for row in rows if row["kind"] == kind]
    return [row for row in rows if row.get("kind") == kind]  # slower


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


@dataclass(frozen=True)
class Axis:
    """From numbers to units of the figure: `start` is where `low` is, `start + length` where `high` is."""

    low: float
    high: float
    start: int
    length: int
    is_logarithmic: bool = False

    @cached_property
    def place(self) -> Callable[[float], int]:
        """Where a number is."""
        low, high = (math.log(each) if self.is_logarithmic else each for each in (self.low, self.high))
        start, length, span = self.start, self.length, high - low
        if self.is_logarithmic:
            return lambda value: round(start + (math.log(value) - low) / span * length)
        return lambda value: round(start + (value - low) / span * length)

    def ticks(self) -> list[float]:
        """Round numbers on the axis."""
        if not self.is_logarithmic:
            return _multiples(self.low, self.high)
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        return [10.0**power for power in powers[:: math.ceil(len(powers) / TICKS)]]


def _multiples(low: float, high: float) -> list[float]:
    """Of 1, 2 or 5 times a power of ten, those between two numbers; none where the two are too close to
    tell apart.
    """
    power = math.floor(math.log10((high - low) / TICKS))
    for unit in (scale * 10.0**power for scale in (1, 2, 5, 10, 20)):
        first, last = (math.ceil(low / unit), math.floor(high / unit)) if unit else (0, math.inf)
        if last - first < TICKS:
            return [unit * n for n in range(first, int(last) + 1)]
    return []


def _upright(panel: Panel, values: Sequence[float]) -> Axis:
    """The vertical axis of a panel, with these values on it."""
    low, high, bottom = min(values), max(values), panel.top + HEIGHT
    if panel.may_be_logarithmic and 0 < low * LOG_RANGE < high:
        room = (high / low) ** MARGIN
        return Axis(low / room, high * room, bottom, -HEIGHT, is_logarithmic=True)
    stands_on_zero = panel.from_zero and low >= 0
    if stands_on_zero:
        low = 0.0
    room = (high - low) * MARGIN or abs(high) * MARGIN or 1.0
    return Axis(low if stands_on_zero else low - room, high + room, bottom, -HEIGHT)


# drawing


def _straightened(places: Sequence[Place], tolerance: float) -> list[Place]:
    """The same line, to within so many units, without the points between."""
    kept, last = [places[0]], places[0]
    low, high = -math.inf, math.inf
    for place in places[1:]:
        across, up = place[0] - kept[-1][0], place[1] - kept[-1][1]
        if across > 0 and low <= up / across <= high:
            low, high = max(low, (up - tolerance) / across), min(high, (up + tolerance) / across)
        else:
            kept.append(last)
            across, up = place[0] - last[0], place[1] - last[1]
            low, high = (
                ((up - tolerance) / across, (up + tolerance) / across)
                if across > 0
                else (math.inf, -math.inf)
            )
        last = place
    return [*kept, last]


def _path(places: Sequence[Place]) -> str:
    """The line through these, each given by its distance from the one before."""
    text = f"M{places[0][0]} {places[0][1]}l"
    moves = [(next_x - x, next_y - y) for (x, y), (next_x, next_y) in pairwise(places)]
    for distance in (distance for move in moves if any(move) for distance in move):
        text += f"{distance}" if distance < 0 or text[-1] == "l" else f" {distance}"
    return text + "0 0" if text[-1] == "l" else text


def _drawn(line: Line, curve: Curve, kept: Curve, across: Axis, upright: Axis, limit: int) -> str:
    """A curve: the line through what is kept of its points, or where these are too few for its turns an
    area.
    """

    def places(curve: Curve) -> list[Place]:
        return [*zip(map(across.place, curve.steps), map(upright.place, curve.values), strict=True)]

    through, has_room = places(kept), limit == POINTS
    if line.may_be_marked and (len(curve) == 1 or (len(curve) < CROWDED and has_room)):
        return f'<path class="{line.style} m" d="{_path(through)}"/>'
    if len(curve) <= limit or _turns(through) * CALM <= len(through):
        return f'<path class="{line.style}" d="{_path(_straightened(through, 0.5 if has_room else 1.0))}"/>'
    upper, lower, spikes = band(curve, limit)
    above, below = (_straightened(places(edge), 1.0) for edge in (upper, lower))
    needles = _needles(
        (across.place(step), upright.place(foot), upright.place(tip)) for step, foot, tip in spikes
    )
    return f'<path class="{line.style} a" d="{_path([*above, *below[::-1]])}z{needles}"/>'


def _needles(spikes: Iterable[tuple[int, int, int]]) -> str:
    """Upright lines, each given by its place relative to the end of the one before. spikes: across, foot and
    tip.
    """
    longest: dict[tuple[int, bool], Place] = {}
    for x, foot, tip in spikes:
        there = longest.get((x, tip > foot), (foot, foot))
        if abs(tip - foot) > abs(there[1] - there[0]):
            longest[x, tip > foot] = foot, tip
    text, last = "", (0, 0)
    for (x, _), (foot, tip) in sorted(longest.items()):
        up = foot - last[1]
        text += (f"m{x - last[0]}{up}" if up < 0 else f"m{x - last[0]} {up}") if text else f"M{x} {foot}"
        text, last = f"{text}v{tip - foot}", (x, tip)
    return text


def _turns(places: Sequence[Place]) -> int:
    """At how many of them a line changes between up and down."""
    moves = [after[1] - before[1] for before, after in pairwise(places) if after[1] != before[1]]
    return sum((before > 0) != (after > 0) for before, after in pairwise(moves))


def drawing(rows: Sequence[dict[str, Any]], starts: Sequence[float], limit: int = POINTS) -> str:
    """The curves, ticks and bounds of segments of all panels; empty where there is no curve.

    starts: steps where further segments began; limit: points of a curve, at least 2.
    """
    found: dict[Line, Curve] = {}
    for kind in ("train", "eval", "final"):
        lines = {line.key: line for panel in PANELS for line in panel.lines if line.kind == kind}
        found |= {lines[key]: curve for key, curve in curves(_of_kind(rows, kind), lines).items() if curve}
    if not found:
        return ""
    low, high = (
        min(curve.steps[0] for curve in found.values()),
        max(curve.steps[-1] for curve in found.values()),
    )
    axes = {left: Axis(low, high if high > low else low + 1, left, WIDTH) for left in COLUMNS}
    grid, drawn, labels = "", "", dict.fromkeys(COLUMNS, "")
    for panel in PANELS:
        kept = {line: thin(found[line], limit) for line in panel.lines if line in found}
        if kept:
            upright = _upright(panel, [value for curve in kept.values() for value in curve.values])
            ticks = [(upright.place(value), value) for value in upright.ticks()]
            grid += "".join(f"M{panel.left} {y}h{WIDTH}" for y, _ in ticks)
            labels[panel.left] += "".join(f'<text y="{y}">{value:,.10g}</text>' for y, value in ticks)
            drawn += "".join(
                _drawn(line, found[line], curve, axes[panel.left], upright, limit)
                for line, curve in kept.items()
            )
    bounds = "".join(
        f"M{axis.place(step)} {ROWS[0]}v{HEIGHT}m0 {ROWS[1] - ROWS[0] - HEIGHT}v{HEIGHT}"
        for step in starts
        if low <= step <= high
        for axis in axes.values()
    )
    # their places in the figure: STYLE
    beside = "".join(f'<g class="y">{texts}</g>' for texts in labels.values())
    below = "".join(
        f'<text x="{axis.place(step)}">{step:,.10g}</text>' for axis in axes.values() for step in axis.ticks()
    )
    return (
        f'<path class="g" d="{grid}"/>{drawn}<path class="b" d="{bounds}"/>{beside}<g class="x">{below}</g>'
    )


def _frame() -> str:
    """What all figures of a page share: axes, titles, units, legends and marks."""
    text = (
        '<g id="frame"><defs>'
        + _marker("dot", f'<circle r="2.5" style="fill:{ORANGE}"/>')
        + _marker("diamond", '<path d="M0-4L4 0L0 4L-4 0z" style="fill:#000;stroke:none"/>')
        + "</defs>"
    )
    for panel in PANELS:
        bottom, middle, half = panel.top + HEIGHT, panel.top + HEIGHT // 2, panel.left + WIDTH // 2
        text += (
            f'<path d="M{panel.left} {panel.top}v{HEIGHT}h{WIDTH}"/><text class="h" x="{half}"'
            f' y="{panel.top - 24}">{panel.title}</text><text class="c"'
            f' transform="translate({panel.left - 56} {middle})rotate(-90)">{panel.unit}</text>'
        )
        if panel.top == ROWS[1]:
            text += f'<text class="c" x="{half}" y="{bottom + 34}">optimiser step</text>'
        x = panel.left + 4
        for style, label in [
            *((line.style + " m" * line.may_be_marked, line.label) for line in panel.lines),
            ("b", "next segment"),
        ]:
            text += (
                f'<path class="{style}" d="M{x} {panel.top - 8}h20"/><text x="{x + 28}"'
                f' y="{panel.top - 4}">{label}</text>'
            )
            x += 50 + 6 * len(label)
    return text + "</g>"


def _marker(name: str, shape: str) -> str:
    return (
        f'<marker id="{name}" markerUnits="userSpaceOnUse" viewBox="-5 -5 10 10" markerWidth="10"'
        f' markerHeight="10">{shape}</marker>'
    )


def figure(name: str, body: str, has_frame: bool) -> str:
    """The whole figure of a drawing. Of several on a page one must have the frame; the others show that."""
    space, frame = (
        (' xmlns="http://www.w3.org/2000/svg"', _frame()) if has_frame else ("", '<use href="#frame"/>')
    )
    text = f'<text class="h" x="{FIGURE_WIDTH // 2}" y="16">{escape(name)}</text>'
    return f'<svg{space} viewBox="0 0 {FIGURE_WIDTH} {FIGURE_HEIGHT}">{frame}{text}{body}</svg>'
