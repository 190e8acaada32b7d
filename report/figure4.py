"""Figure 4 of some evaluations at every compute budget: its data and its drawing.

    curves = [read_curve(path)]                                 # report.collect, of ppl_per_mac.json
    draw({"sequence_length": 256, "models": [...], "curves": series(curves), "paper": paper_points(curves)})

All budgets of a model read the same windows.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from report.collect import Curve

NOTE = (
    "routing by capacity picks tokens by scores over the whole sequence: the router's points are not those of"
    " a causal model"
)
CLOSE = 1.2  # perplexities that the close-up shows: 0.15 is an eighth of them
FEWEST_CLOSE = 4  # points in it
APART = (0.15, 0.08)  # of the width and the height of what is drawn, that the texts at two points need
GREY = "#555555"
KINDS = {"router": "Router", "fixed_depth": "Fixed Depth"}


def series(
    curves: Sequence[Curve], labels: Mapping[Path, str] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """The curves that are drawn, each by increasing work; steps are in a label where a model comes several
    times, or has a label.
    """
    from dataclasses import asdict

    from report.rows import NAMES

    families = [NAMES[curve.args.model].removeprefix("Adaptive ") for curve in curves]
    result = []
    for curve, family in zip(curves, families, strict=True):
        own = labels.get(curve.path)
        steps = (
            f", {curve.steps:,} steps"
            if (own or families.count(family) > 1) and curve.steps is not None
            else ""
        )
        kinds = {**KINDS, "router": "Router, published rule"} if curve.is_published else KINDS
        for kind, name in kinds.items():
            points = sorted(getattr(curve, kind), key=lambda point: point.macs)
            if points:
                result.append(
                    {
                        "label": f"{own or family} ({name}){steps}",
                        "family": family,
                        "kind": kind,
                        "checkpoint": curve.checkpoint,
                        "timed_together": curve.is_timed,
                        "points": [asdict(point) for point in points],
                    }
                )
    return result


def name_of(curve: Curve) -> str:
    """Model and checkpoint, for the title."""
    from report.figures import checkpoint_name
    from report.rows import title

    steps = "" if curve.steps is None else f", {curve.steps:,} steps"
    return f"{title(curve.args)}{steps}: {checkpoint_name(curve.checkpoint)}"


def paper_points(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Section 5's values at full compute, where a file is of a model of that shape."""
    from models.macs import count_macs
    from report.paper import paper_value
    from report.rows import ROWS, architecture

    rows = [row for row in ROWS if row.table == "Section 5"]
    if not any(
        architecture(curve.args) == architecture(row.args()) and curve.sequence_length == 256
        for curve in curves
        for row in rows
    ):
        return []
    return [
        {
            "label": f"{row.label.split(',')[0]}, full compute, 60k steps, paper",
            "model": row.model,
            "macs": count_macs(row.args(), 256),
            "perplexity": paper_value(row.paper).perplexity,
        }
        for row in rows
    ]


def is_paired(data: dict[str, Any]) -> bool:
    return any(point["paired"] for one in data["curves"] for point in one["points"])


def panel(axis: Any, data: dict[str, Any], x: str, scale: float, has_bars: bool) -> None:
    """All curves over one kind of cost, each by increasing cost; times that were taken one by one are too
    noisy to be joined by a line.
    """
    from report.figures import BLACK, FAMILIES, GREEN, PURPLE, SKY, whiskers

    seen: dict[str, int] = {}
    others = (GREEN, PURPLE, SKY, BLACK)  # of the second and further curves of a family
    bar = "paired" if is_paired(data) else "interval"
    for one in data["curves"]:
        points = sorted(
            (point for point in one["points"] if point[x] is not None), key=lambda point: point[x]
        )
        colour, marker = FAMILIES.get(one["family"], (GREEN, "D"))
        seen[one["family"] + one["kind"]] = count = seen.get(one["family"] + one["kind"], 0) + 1
        values = [point["perplexity"] for point in points]
        bars = [
            (has_bars and point[bar]) or (value, value) for point, value in zip(points, values, strict=True)
        ]
        is_router = one["kind"] == "router"
        line = "none" if x == "seconds" and not one["timed_together"] else "-" if is_router else "--"
        axis.errorbar(
            [point[x] * scale for point in points],
            values,
            whiskers(values, bars),
            color=colour if count == 1 else others[(count - 2) % len(others)],
            marker=marker,
            linestyle=line,
            linewidth=0.8,
            markersize=3,
            markeredgewidth=0.7,
            markerfacecolor=None if is_router else "white",
            elinewidth=0.6,
            capsize=1.5,
            label=one["label"],
        )
        if is_router and x == "macs":
            name_cuts(axis, points, x, scale)


def name_cuts(axis: Any, points: Sequence[dict[str, Any]], x: str, scale: float) -> None:
    """Beside the router's points: the lowest score that goes on; of points too close together for a text
    each, the range.
    """
    width, height = axis.dataLim.size
    groups: list[tuple[float, float, list[float]]] = []
    for point in points:
        across, up = point[x] * scale, point["perplexity"]
        if (
            groups
            and abs(across - groups[-1][0]) < APART[0] * width
            and abs(up - groups[-1][1]) < APART[1] * height
        ):
            groups[-1][2].append(point["label"])
        else:
            groups.append((across, up, [point["label"]]))
    for across, up, cuts in groups:
        text = f"{min(cuts):g}" + (f" to {max(cuts):g}" if min(cuts) < max(cuts) else "")
        axis.annotate(text, (across, up), xytext=(2, 3), textcoords="offset points", fontsize=8, color=GREY)


def closer(data: dict[str, Any]) -> tuple[float, float] | None:
    """Perplexities of a close-up of the best points; None where the whole figure is hardly larger, or they
    are few.
    """
    values = [point["perplexity"] for one in data["curves"] for point in one["points"]]
    low = min(values)
    near = sum(value <= low + CLOSE for value in values)
    return (
        (low - 0.1 * CLOSE, low + CLOSE) if max(values) - low > 1.5 * CLOSE and near >= FEWEST_CLOSE else None
    )


def zoom(axis: Any, limits: tuple[float, float], data: dict[str, Any], x: str, scale: float) -> None:
    """Show those perplexities, and the costs of the points that have them."""
    places = [
        point[x] * scale
        for one in data["curves"]
        for point in one["points"]
        if point["perplexity"] <= limits[1]
    ]
    margin = 0.06 * (max(places) - min(places)) or 0.05 * max(places)
    axis.set(xlim=(min(places) - margin, max(places) + margin), ylim=limits)


def draw(data: dict[str, Any]) -> Figure:
    from report.figures import BLACK, ONE_COLUMN, TWO_COLUMNS, legend, panels, plain

    is_timed = all(point["seconds"] for one in data["curves"] for point in one["points"])
    close = closer(data)
    width, letters = (TWO_COLUMNS, 105) if is_timed else (ONE_COLUMN, 52)
    bars = (
        "bars: 95% of the paired difference to full depth on the same windows"
        if is_paired(data)
        else "bars: 95% over windows of one model (no paired differences in the file)"
    )
    heading = [
        *textwrap.wrap(f"Perplexity against compute, {bars}", letters),
        *(line for model in data["models"] for line in textwrap.wrap(model, letters)),
        *textwrap.wrap(
            "Router: by capacity, which looks at later tokens (not a causal model's perplexity)", letters
        ),
    ]
    if any(one["kind"] == "router" for one in data["curves"]):
        heading += textwrap.wrap(
            "Numbers at the router's points: the lowest score that goes on (1 - t of the paper's thresholds)",
            letters,
        )
    if is_timed and not all(one["timed_together"] for one in data["curves"]):
        heading += textwrap.wrap("Points without a line: each was timed once, on its own", letters)
    labels = [one["label"] for one in (*data["curves"], *data["paper"])]
    costs = [("macs", 1e-9, rf"MACs of a {data['sequence_length']}-token sequence ($\times 10^9$)")]
    costs += [("seconds", 1e3, "measured time of a sequence (ms)")] * is_timed
    height = 2.6 + 2.3 * (close is not None) + 0.16 * (len(heading) + math.ceil(len(labels) / len(costs)))
    figure, axes = panels(1 if close is None else 2, len(costs), width, height, sharey="row")
    for row, line in enumerate(axes):
        for axis, (x, scale, _) in zip(line, costs, strict=True):
            # those of one model would cover the close-up
            panel(axis, data, x, scale, has_bars=row == 0 or is_paired(data))
        for marker, point in zip("*P", data["paper"], strict=False):
            line[0].plot(
                point["macs"] / 1e9,
                point["perplexity"],
                marker,
                color=BLACK,
                markerfacecolor="none",
                markersize=8,
                markeredgewidth=0.7,
                alpha=0.6,
                zorder=5,
                label=point["label"],
            )
        for axis in line[1:]:
            axis.tick_params(left=False)
    for line, name in zip(axes, ("validation perplexity", "the best points, closer"), strict=False):
        line[0].set_ylabel(name)
    for axis, (x, scale, name) in zip(axes[-1], costs, strict=True):
        axis.set_xlabel(name)
        if close is not None:
            zoom(axis, close, data, x, scale)
    legend(figure, axes[:, :1], labels, len(costs))
    figure.suptitle(plain("\n".join(heading)), fontsize=8)
    return figure
