"""The curves of an experiment as SVG: four panels, whose titles, units and legends a page holds once.

    body = drawing(rows, starts, limit=500)      # rows of metrics.jsonl; empty where there is nothing to draw
    svg = figure("owt2/base/run", body, has_frame=True)

A noisy curve of more points than `limit` is drawn as the area between the lowest and the highest of each
stretch, with its spikes one by one: a dense curve looks the same, and no extreme is lost. Coordinates are
whole units, of which the figure is 1200 wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from itertools import pairwise
from typing import Any

from monitor.curves import POINTS, Curve, band, curves, thin
from optim.evaluations import AT_END, DURING, Best, Evaluated, by_kind, evaluations, measured

# points from which they are no longer marked one by one; they are not on a page of many experiments either
CROWDED = 60
CALM = 4  # a curve that turns at no more than one in so many of its points is a line, however long
LOG_RANGE = 30.0  # largest over smallest gradient norm from which their axis is logarithmic
TICKS = 3  # at most so many on an axis, and one more
MARGIN = 0.05  # of the height, above and below the curves
# Okabe and Ito: for every kind of colour vision
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
# of the evaluations that have names: each colour as a line, then in dashes, then in dots
OF_NAMES, DASHES = (GREEN, PINK, "#E69F00", "#000", "#56B4E9"), ("none", "7 4", "1 4")
STYLES_OF_NAMES = len(OF_NAMES) * len(DASHES)
LONGEST_NAME = 24  # characters of an evaluation's in the legend
LEGEND_LINE, LEGEND_LINES, LEGEND_LETTER = 15, 2, 6  # height of one, how many there are; width
RING = 6  # radius of the mark of the best checkpoint

Place = tuple[int, int]  # in the figure


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
# from the lower panels to those of what users measure themselves, and how many of these there are at most
NEXT_ROW, MOST_OWN = 290, 8
IN_NO_PANEL = ("val_loss", "n_pairs")  # of their own: the loss is among the losses, a count stays what it is
PER_SECOND = "_per_second"
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
        "tokens/s (windows/s, samples/s)",
        COLUMNS[1],
        ROWS[1],
        (Line("train", f"tokens{PER_SECOND}", "s", "throughput"),),
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
.o {{ color: #000; stroke-width: 1.5; }}
.h {{ text-anchor: middle; font-size: 13px; }} .x {{ text-anchor: middle; transform: translate(0, {
    ROWS[1] + HEIGHT + 16
}px); }}
.y {{ text-anchor: end; transform: translate({COLUMNS[0] - 5}px, 4px); }} .y + .y {{ transform: \
translate({COLUMNS[1] - 5}px, 4px); }}
"""


def _style_of_name(number: int) -> str:
    """Of an evaluation that has a name: e during training, f at the end."""
    dash, color = divmod(number, len(OF_NAMES))
    return (
        f".e{number}, .f{number} {{ color: {OF_NAMES[color]}; stroke-width: 1.5; stroke-dasharray:"
        f" {DASHES[dash]}; }} .e{number}.m {{ marker: url(#dot{color}); }} .f{number}.m {{ marker:"
        f" url(#diamond{color}); }}\n"
    )


STYLE += "".join(map(_style_of_name, range(STYLES_OF_NAMES)))


# places


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


def named_lines(names: Sequence[str]) -> tuple[Line, ...]:
    """The loss of each evaluation that has a name, during training and on the whole split."""
    lines: list[Line] = []
    for number, name in enumerate(names):
        style = number % STYLES_OF_NAMES
        for kind, letter in ((DURING, "e"), (AT_END, "f")):
            lines.append(Line(f"{kind}@{name}", "val_loss", f"{letter}{style}", name, may_be_marked=True))
    return tuple(lines)


def own_panels(evaluated: Iterable[Evaluated]) -> list[Panel]:
    """One for each number that an evaluation of no text measures, but its loss, below the other panels."""
    lines: list[Line] = []
    for one in evaluated:
        if not any("val_pp" in row for row in (*one.during, *one.final)):
            kind = f"{DURING}@{one.name}" if one.name else DURING
            keys = dict.fromkeys(key for row in one.during[-1:] for key in measured(row))
            shown = [key for key in keys if key not in IN_NO_PANEL]
            lines += [Line(kind, key, "v", one.name, may_be_marked=True) for key in shown]
    panels = []
    for number, line in enumerate(lines[:MOST_OWN]):
        top = ROWS[1] + NEXT_ROW + (ROWS[1] - ROWS[0]) * (number // len(COLUMNS))
        left = COLUMNS[number % len(COLUMNS)]
        panels.append(Panel(escape(line.key), escape(line.label), left, top, (line,)))
    return panels


def throughput_of(rows: Sequence[dict[str, Any]]) -> Panel:
    """The panel of throughput, of what these rows of training count: tokens, windows, samples."""
    panel, clock = PANELS[3], rows[-1].get("time") if rows else None
    for key in clock if isinstance(clock, dict) else ():
        if isinstance(key, str) and key.endswith(PER_SECOND):
            return replace(panel, lines=(replace(panel.lines[0], key=key),))
    return panel


def curves_of(panels: Iterable[Panel], kinds: Mapping[str, Sequence[dict[str, Any]]]) -> dict[Line, Curve]:
    """Of the lines of some panels, those that have one. kinds: rows of metrics.jsonl by their kind."""
    of_kinds: dict[str, dict[str, Line]] = {}
    for line in (line for panel in panels for line in panel.lines):
        of_kinds.setdefault(line.kind, {})[line.key] = line
    found: dict[Line, Curve] = {}
    for kind, lines in of_kinds.items():
        found |= {lines[key]: curve for key, curve in curves(kinds.get(kind, []), lines).items() if curve}
    return found


def drawing(
    rows: Sequence[dict[str, Any]], starts: Sequence[float], limit: int = POINTS, best: Best | None = None
) -> str:
    """The curves, ticks and bounds of segments of all panels; empty where there is no curve.

    starts: steps where further segments began; limit: points of a curve, at least 2; best: of best.pt, whose
    point is marked.
    """
    kinds = by_kind(rows)
    evaluated = evaluations(kinds)
    named = named_lines([*filter(None, evaluated)])
    own = own_panels(evaluated.values())
    losses = replace(PANELS[0], lines=(*PANELS[0].lines, *named))
    panels = (losses, *PANELS[1:3], throughput_of(kinds.get("train", [])), *own)
    found = curves_of(panels, kinds)
    if not found:
        return ""
    low, high = (
        min(curve.steps[0] for curve in found.values()),
        max(curve.steps[-1] for curve in found.values()),
    )
    axes = {left: Axis(low, high if high > low else low + 1, left, WIDTH) for left in COLUMNS}
    grid, drawn, labels = "", "", dict.fromkeys(COLUMNS, "")
    for panel in panels:
        kept = {line: thin(found[line], limit) for line in panel.lines if line in found}
        if kept:
            across, upright = (
                axes[panel.left],
                _upright(panel, [value for curve in kept.values() for value in curve.values]),
            )
            ticks = [(upright.place(value), value) for value in upright.ticks()]
            grid += "".join(f"M{panel.left} {y}h{WIDTH}" for y, _ in ticks)
            labels[panel.left] += "".join(f'<text y="{y}">{value:,.10g}</text>' for y, value in ticks)
            for line, curve in kept.items():
                path = _drawn(line, found[line], curve, across, upright, limit)
                drawn += _told(line, found[line], path) if line in named else path
            ring = _ring(kept, found, best, across, upright)
            drawn += ring + (_axes(panel) if panel in own else "")
            if panel is panels[0]:
                drawn += _legend([line for line in named[::2] if line in found], best if ring else None)
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


def _told(line: Line, curve: Curve, path: str) -> str:
    """A curve with a name, that says it where a pointer rests on it."""
    text = f"{line.label}: {curve.values[-1]:.4f} at step {curve.steps[-1]:,.10g}"
    if len(curve) > 1:
        least = min(curve.values)
        text += f", lowest {least:.4f} at step {curve.steps[curve.values.index(least)]:,.10g}"
    return f"<g><title>{escape(text)}</title>{path}</g>"


def _ring(
    lines: Iterable[Line], found: Mapping[Line, Curve], best: Best | None, across: Axis, upright: Axis
) -> str:
    """Around the point of best.pt, in a panel of the loss of the evaluation that it is the best by, or of the
    quantity; empty where that is not drawn.
    """
    if best is None:
        return ""
    kind = f"{DURING}@{best.evaluation}" if best.evaluation else DURING
    mine = (line for line in lines if line.kind == kind and line.key in ("val_loss", best.quantity))
    line = next(mine, None)
    value = None if line is None else found[line].at(best.step)
    if value is None:
        return ""
    x, y = across.place(best.step), upright.place(value)
    return f"<g><title>best.pt: {escape(str(best))}</title>{_circle(x, y)}</g>"


def _circle(x: int, y: int) -> str:
    half = f"a{RING} {RING} 0 1 0"
    return f'<path class="o" d="M{x - RING} {y}{half} {2 * RING} 0{half}-{2 * RING} 0"/>'


def _legend(lines: Sequence[Line], best: Best | None) -> str:
    """Of the curves with names and the mark of the best checkpoint: below the loss, in two lines of its
    width, or where that is not enough of the figure's. What has no room is told where a pointer rests on it.
    """
    entries = []
    for line in lines:
        label = line.label
        if len(label) > LONGEST_NAME:
            label = label[: LONGEST_NAME - 1] + "…"
        entries.append((f'<path class="{line.style} m" d="M{{x}} {{y}}h20"/>', label))
    if best is not None:
        entries.insert(0, ("", f"best.pt, step {best.step:,}"))
    for right in (COLUMNS[0] + WIDTH, COLUMNS[1] + WIDTH):
        text, number, x = "", 0, COLUMNS[0] + 4
        for mark, label in entries:
            width = 44 + LEGEND_LETTER * len(label)
            if x + width > right:
                number, x = number + 1, COLUMNS[0] + 4
            y = ROWS[0] + HEIGHT + 12 + LEGEND_LINE * number
            if number == LEGEND_LINES:
                break
            text += mark.format(x=x, y=y) if mark else _circle(x + 10, y)
            text += f'<text x="{x + 28}" y="{y + 4}">{escape(label)}</text>'
            x += width
        if number < LEGEND_LINES:
            break
    return text


def _axes(panel: Panel) -> str:
    """The axes of a panel, its title and its unit."""
    middle, half = panel.top + HEIGHT // 2, panel.left + WIDTH // 2
    return (
        f'<path d="M{panel.left} {panel.top}v{HEIGHT}h{WIDTH}"/><text class="h" x="{half}"'
        f' y="{panel.top - 24}">{panel.title}</text><text class="c"'
        f' transform="translate({panel.left - 56} {middle})rotate(-90)">{panel.unit}</text>'
    )


def _frame() -> str:
    """What all figures of a page share: axes, titles, units, legends and marks."""
    text = (
        '<g id="frame"><defs>'
        + _marker("dot", _dot(ORANGE))
        + _marker("diamond", _diamond("#000"))
        + "".join(_markers(str(number), color) for number, color in enumerate(OF_NAMES))
        + "</defs>"
    )
    for panel in PANELS:
        text += _axes(panel)
        if panel.top == ROWS[1]:
            half, bottom = panel.left + WIDTH // 2, panel.top + HEIGHT
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


def _markers(number: str, color: str) -> str:
    return _marker(f"dot{number}", _dot(color)) + _marker(f"diamond{number}", _diamond(color))


def _dot(color: str) -> str:
    return f'<circle r="2.5" style="fill:{color}"/>'


def _diamond(color: str) -> str:
    return f'<path d="M0-4L4 0L0 4L-4 0z" style="fill:{color};stroke:none"/>'


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
    # in the body only panels of users' own have titles
    rows = math.ceil(body.count('<text class="h"') / len(COLUMNS))
    height = FIGURE_HEIGHT + (ROWS[1] - ROWS[0]) * rows
    return f'<svg{space} viewBox="0 0 {FIGURE_WIDTH} {height}">{frame}{text}{body}</svg>'
