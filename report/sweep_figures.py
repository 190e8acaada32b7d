"""Pictures of a sweep: a curve for each setting, the value along each axis, and for two axes a heat map."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.sweep import Sweep, as_text
from report.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, TWO_COLUMNS, panels, plain, save
from report.sweep_cells import Mean, Quantity, Setting, as_number, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK)
DASHES = ("-", "--", ":")
MOST_COLOURED = 8  # settings; the others are grey
FAINT = "0.75"
LONGEST_LABEL = 40  # characters
BEGINNING = 0.3  # of the steps, whose values may be beyond the top of the picture
LOGARITHMIC = 5.0  # ratio of the ends of an axis from which on it may be logarithmic
MOST_TICKS = 8
MOST_PANELS = 9
FENCE = 3.0  # interquartile ranges beyond which a value is an outlier
WIDTH_OF_TICKS = 60  # characters of the labels of ticks that fit side by side
LONG = 12  # characters of a name that has more room on the left
LARGEST_MAP = (20, 14)  # rows and columns with numbers in them
ROWS_OF_MAP = 60
STAR = 90  # size of the mark of the best setting
Picture = tuple[str, str]


def draw(
    settings: Sequence[Setting], sweep: Sweep, quantity: Quantity, output: Path, stem: str
) -> tuple[list[Picture], list[str]]:
    """Files with their captions, and lines about what is not drawn."""
    pictures: list[Picture] = []
    notes = []
    order = ranked(settings)
    if any(setting.curve for setting in settings):
        pictures.append(curves(settings, order, sweep, quantity, output, f"{stem}-curves"))
    else:
        notes.append("no curves: no cell has an evaluation during training")
    if not order:
        notes.append("no pictures of values at the end: no cell is finished")
    axes = sweep.dimensions
    if order and axes:
        pictures.append(along_axes(order, axes, quantity, sweep, output, f"{stem}-axes"))
        if len(axes) > MOST_PANELS:
            notes.append(f"values along {', '.join([*axes][MOST_PANELS:])} are not drawn")
    if len(axes) == 2 and order:
        (_, rows), (_, columns) = axes.items()
        if len(rows) * len(columns) > 2 * len(settings):
            notes.append("no heat map: most combinations of the two axes have no cell")
        elif max(len(rows), len(columns)) > ROWS_OF_MAP:
            notes.append(f"no heat map: an axis has more than {ROWS_OF_MAP} values")
        else:
            pictures.append(heat_map(settings, axes, quantity, sweep, output, f"{stem}-map"))
    elif len(axes) > 2:
        notes.append(f"no heat map: {len(axes)} axes vary ({', '.join(axes)})")
    return pictures, notes


def short(text: str) -> str:
    return plain(text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 16] + "..." + text[-13:])


# curves


def curves(
    settings: Sequence[Setting],
    order: Sequence[Setting],
    sweep: Sweep,
    quantity: Quantity,
    output: Path,
    stem: str,
) -> Picture:
    drawn = [setting for setting in settings if setting.curve]
    known = [setting for setting in order if setting.curve]
    rest = sorted((each for each in drawn if each not in known), key=lambda each: _last(each, quantity))
    coloured = [*known, *rest][:MOST_COLOURED]
    others = [setting for setting in drawn if setting not in coloured]
    n_lines = len(coloured) + bool(others)
    figure, ((axis,),) = panels(1, 1, TWO_COLUMNS, 3.0 + 0.16 * n_lines)
    for number, setting in enumerate(others):
        means = [statistics.fmean(values) for values in setting.curve.values()]
        label = f"the other {len(others)}" if number == 0 else None
        axis.plot([*setting.curve], means, color=FAINT, linewidth=0.6, label=label, zorder=1)
    for number, setting in enumerate(coloured):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS)]
        _band(axis, setting, colour, dash)
    axis.set_ylim(*_limits(coloured, quantity))
    axis.set_xlabel("step")
    axis.set_ylabel(plain(quantity.name))
    axis.set_title(
        plain(f"Sweep {sweep.name}: {quantity.name} during training ({quantity.better} is better)")
    )
    handles, labels = axis.get_legend_handles_labels()
    if others:  # first drawn, last named
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if _is_wide(labels) else 2)
    save(figure, output, stem, {"curves": {each.label: each.curve for each in drawn}})
    n_seeds = max(len(setting.results) for setting in settings)
    band = "; the band goes from the lowest to the highest seed" if n_seeds > 1 else ""
    grey = f"; the {len(coloured)} best settings are in colour, the others grey" if others else ""
    caption = (
        f"{quantity.name} during training, mean over seeds{band}{grey}. Early values may be beyond the top."
    )
    return f"{stem}.png", caption


def _is_wide(labels: Sequence[str]) -> bool:
    return max(map(len, labels)) > LONGEST_LABEL


def _last(setting: Setting, quantity: Quantity) -> float:
    """For sorting settings without a finished cell."""
    return quantity.sign * statistics.fmean([*setting.curve.values()][-1])


def _band(axis: Axes, setting: Setting, colour: str, dash: str) -> None:
    course = setting.curve
    n, whole = len(next(iter(course.values()))), len(setting.results)
    state = (
        ""
        if setting.n_finished == whole
        else f" ({n} of {whole} seeds)"
        if setting.n_finished
        else " (unfinished)"
    )
    means = [statistics.fmean(values) for values in course.values()]
    marker = "o" if len(course) == 1 else None
    axis.plot(
        [*course], means, dash, color=colour, marker=marker, label=short(setting.label) + state, zorder=3
    )
    if n > 1:
        low, high = [min(values) for values in course.values()], [max(values) for values in course.values()]
        axis.fill_between([*course], low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)


def _limits(coloured: Sequence[Setting], quantity: Quantity) -> tuple[float, float]:
    """Of the values after the beginning, and a little more on both sides."""
    longest = max(max(setting.curve) for setting in coloured)
    late = []
    for setting in coloured:
        last = max(setting.curve)
        for step, values in setting.curve.items():
            if step >= BEGINNING * longest or step == last:
                late += values
    low, high = min(late), max(late)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


# along the axes


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_logarithmic(values: Sequence[Any]) -> bool:
    """Whether positive numbers spread more evenly by their logarithm."""
    if not all(is_number(value) and value > 0 for value in values) or max(values) < LOGARITHMIC * min(values):
        return False
    return _unevenness([math.log(value) for value in values]) < _unevenness(values)


def _unevenness(values: Sequence[float]) -> float:
    gaps = [later - earlier for earlier, later in pairwise(sorted(values))]
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


def along_axes(
    order: Sequence[Setting],
    axes: Mapping[str, Sequence[Any]],
    quantity: Quantity,
    sweep: Sweep,
    output: Path,
    stem: str,
) -> Picture:
    """The value at the end of each setting, over each axis."""
    shown = dict([*axes.items()][:MOST_PANELS])
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    figure, grid = panels(rows, columns, TWO_COLUMNS, 0.6 + 2.5 * rows, sharey=True)
    for place in grid.flat[len(shown) :]:
        place.set_visible(False)
    low, high = clipped([setting.end.mean for setting in order if setting.end], quantity)
    for axis, (name, values) in zip(grid.flat, shown.items(), strict=False):
        place = _places(axis, name, values, WIDTH_OF_TICKS // columns)
        points = [(place(each.place[name]), each.end) for each in order if each.end]
        _points(axis, points[1:], BLUE)
        _points(axis, points[:1], ORANGE)
        axis.scatter([points[0][0]], [points[0][1].mean], s=STAR, marker="*", color=ORANGE, zorder=3)
        axis.margins(y=0.08)
    room = 0.08 * (high - low) or 0.01 * abs(high) or 1.0
    grid.flat[0].set_ylim(low - room, high + room)
    for axis in grid[:, 0]:
        axis.set_ylabel(plain(f"{quantity.name} at the end"))
    figure.suptitle(plain(f"Sweep {sweep.name}: the settings along each axis"))
    data = [{"setting": each.place, "mean": each.end.mean, "sem": each.end.sem} for each in order if each.end]
    save(figure, output, stem, {"settings": data})
    caption = (
        f"{quantity.name} at the end of settings with a finished cell, ± SEM over seeds; star: the best."
    )
    if any(not low <= setting.end.mean <= high for setting in order if setting.end):
        caption += " Settings that are far worse are beyond the edge."
    return f"{stem}.png", caption


def _points(axis: Axes, points: Sequence[tuple[float, Mean]], colour: str) -> None:
    """All at once: errorbar makes several lines a call."""
    places, means = [place for place, _ in points], [end.mean for _, end in points]
    sems = [math.nan if end.sem is None else end.sem for _, end in points]
    axis.errorbar(places, means, yerr=sems, fmt="o", color=colour, capsize=2, zorder=2)


def _places(axis: Axes, name: str, values: Sequence[Any], room: int) -> Callable[[Any], float]:
    """Where a value stands on an axis that shows these, which is labelled. room: characters."""
    axis.set_xlabel(plain(name))
    if not all(map(is_number, values)):
        names = [*map(as_text, values)]
        _name_ticks(axis, names, room)
        return lambda value: names.index(as_text(value))
    if is_logarithmic(values):
        axis.set_xscale("log")
    if len(values) <= MOST_TICKS:
        axis.minorticks_off()
        ticks = sorted(values)
        texts = [*map(as_text, ticks)]
        slanted = sum(map(len, texts)) > room
        axis.set_xticks(ticks, texts, rotation=45 * slanted, ha="right" if slanted else "center")
    return float


def _name_ticks(axis: Axes, names: Sequence[str], room: int) -> None:
    slanted = sum(map(len, names)) > room
    texts = [plain(name if len(name) <= 24 else f"{name[:12]}...{name[-9:]}") for name in names]
    axis.set_xticks(range(len(names)), texts, rotation=45 * slanted, ha="right" if slanted else "center")


def clipped(values: Sequence[float], quantity: Quantity) -> tuple[float, float]:
    """Limits that the best value sets, and the worst one that is no outlier."""
    if len(values) < 4:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    fence = FENCE * (third - first)
    if quantity.sign > 0:
        return min(values), max(value for value in values if value <= third + fence)
    return min(value for value in values if value >= first - fence), max(values)


# heat map


def _ordered(values: Sequence[Any]) -> list[Any]:
    return sorted(values) if all(map(is_number, values)) else list(values)


def heat_map(
    settings: Sequence[Setting],
    axes: Mapping[str, Sequence[Any]],
    quantity: Quantity,
    sweep: Sweep,
    output: Path,
    stem: str,
) -> Picture:
    """The mean at the end, by two axes. The one with the longer names, or with more values, goes down."""

    def width(axis: tuple[str, Sequence[Any]]) -> tuple[bool, int]:
        return max(len(as_text(value)) for value in axis[1]) > LONG, len(axis[1])

    (down, rows), (across, columns) = sorted(axes.items(), key=width, reverse=True)
    rows, columns = _ordered(rows), _ordered(columns)
    if not all(map(is_number, rows)):  # words are read from the top
        rows.reverse()
    at = {(repr(each.place[down]), repr(each.place[across])): each for each in settings}
    grid = [[at.get((repr(row), repr(column))) for column in columns] for row in rows]
    means = [[each.end.mean if each is not None and each.end else math.nan for each in line] for line in grid]
    known = [value for line in means for value in line if not math.isnan(value)]
    low, high = clipped(known, quantity)
    height = 1.2 + max(len(rows) * (0.32 if len(rows) <= LARGEST_MAP[0] else 0.14), 0.9)
    figure, ((axis,),) = panels(1, 1, TWO_COLUMNS, height)
    axis.grid(False)
    axis.set_facecolor("0.92")
    colours = "viridis_r" if quantity.sign > 0 else "viridis"
    image = axis.imshow(means, aspect="auto", cmap=colours, vmin=low, vmax=high, origin="lower")
    _name_ticks(axis, [*map(as_text, columns)], WIDTH_OF_TICKS)
    axis.set_yticks(range(len(rows)), [short(as_text(row)) for row in rows])
    axis.set_xlabel(plain(across))
    axis.set_ylabel(plain(down))
    best = next(iter(ranked(settings)), None)
    if len(rows) <= LARGEST_MAP[0] and len(columns) <= LARGEST_MAP[1]:
        _write_numbers(axis, grid, image, best, len(columns))
    axis.set_title(plain(f"Sweep {sweep.name}: {quantity.name} at the end ({quantity.better} is better)"))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    beyond = min(known) < low, max(known) > high
    figure.colorbar(image, ax=axis, label=plain(quantity.name), extend=extend[beyond])
    save(
        figure,
        output,
        stem,
        {"down": down, "rows": rows, "across": across, "columns": columns, "means": means},
    )
    caption = (
        f"{quantity.name} at the end, mean of the finished seeds, by {down} and {across}; the best is framed"
    )
    return f"{stem}.png", f"{caption}; grey: no finished cell; k/n: so many of its seeds are finished."


def _write_numbers(
    axis: Axes, grid: Sequence[Sequence[Setting | None]], image: Any, best: Setting | None, n_columns: int
) -> None:
    from matplotlib.patches import Rectangle

    size = 8 if n_columns <= 8 else 6
    for y, line in enumerate(grid):
        for x, setting in enumerate(line):
            if setting is None:
                continue
            whole = len(setting.results)
            text = "" if setting.end is None else as_number(setting.end.mean)
            if setting.n_finished < whole:
                text += f" {setting.n_finished}/{whole}"
            colour = BLACK
            if setting.end is not None:
                red, green, blue, _ = image.cmap(image.norm(setting.end.mean))
                colour = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else BLACK
            axis.text(x, y, text.strip(), ha="center", va="center", color=colour, fontsize=size)
            if setting is best:
                # not clipped: half of the line would be missing at the edges of the map
                frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2)
                axis.add_patch(frame).set(clip_on=False, zorder=3)
