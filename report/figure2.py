"""Figure 2, perplexity against multiply-accumulates: its drawing.

draw({"sequence_length": 256, "paper": [...], "ours": [...]})       # plot_fig2.py has the points
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS = (12, 24)
# where the label of a point stands: offset in points, horizontal and vertical alignment; by size (12x5 and
# 12x6 are close), else by family
LABELS = {"12x6": ((3, -3), "left", "top"), "CoTFormer": ((-4, -3), "right", "top")}
UPPER_RIGHT = ((3, 4), "left", "bottom")


def size(args: Namespace) -> str:
    """`48` or `12x3`."""
    from models.variants import VARIANTS

    return f"{args.n_layer}x{args.n_repeat}" if VARIANTS[args.model].loop else str(args.n_layer)


def panel(axis: Any, layers: int, data: dict[str, Any]) -> None:
    """Models of that many layers, and the standard ones of all sizes for comparison."""
    from matplotlib.patheffects import withStroke

    from report.figures import FAINT, FAMILIES, whiskers

    def here(point: dict[str, Any]) -> bool:
        return point["family"] == "Standard" or point["n_layer"] == layers

    for family in dict.fromkeys(point["family"] for point in data["paper"]):
        colour, marker = FAMILIES[family]
        points = [point for point in data["paper"] if point["family"] == family and here(point)]
        x, y = [point["macs"] / 1e9 for point in points], [point["perplexity"] for point in points]
        axis.plot(
            x,
            y,
            color=colour,
            marker=marker,
            markerfacecolor="white",
            linestyle="-" if family == "CoTFormer" else "--",
            alpha=FAINT if data["ours"] else 1,
            label=f"{family}, paper",
        )
        for point, place in zip(points, x, strict=True):
            offset, horizontal, vertical = LABELS.get(point["size"]) or LABELS.get(family, UPPER_RIGHT)
            axis.annotate(
                point["size"],
                (place, point["perplexity"]),
                xytext=offset,
                textcoords="offset points",
                fontsize=8,
                color=colour,
                path_effects=[withStroke(linewidth=2, foreground="white")],
                ha=horizontal,
                va=vertical,
            )
        ours = [point for point in data["ours"] if point["family"] == family and here(point)]
        if ours:
            values = [point["perplexity"] for point in ours]
            axis.errorbar(
                [point["macs"] / 1e9 for point in ours],
                values,
                whiskers(values, [point["interval_over_windows"] for point in ours]),
                color=colour,
                marker=marker,
                linestyle="none",
                elinewidth=0.7,
                capsize=2,
                zorder=3,
                label=f"{family}, ours",
            )
    axis.set_title(f"{layers} layers")
    axis.set_xlabel(r"MACs of a 256-token sequence ($\times 10^9$)")


def draw(data: dict[str, Any]) -> Figure:
    from report.figures import FAMILIES, TWO_COLUMNS, legend, panels

    figure, axes = panels(1, len(LAYERS), TWO_COLUMNS, 3.2 if data["ours"] else 2.9, sharey=True)
    for axis, layers in zip(axes[0], LAYERS, strict=True):
        panel(axis, layers, data)
        axis.margins(x=0.12, y=0.07)
    axes[0][0].set_ylabel("validation perplexity")
    axes[0][1].tick_params(left=False)
    legend(
        figure, axes, [f"{family}, {whose}" for family in FAMILIES for whose in ("paper", "ours")], columns=3
    )
    ours = (
        f"\nours: {len(data['ours'])} models, bars: 95% intervals over texts of one model; checkpoints are"
        " named in fig2.json"
    )
    figure.suptitle(
        "Perplexity against compute: Table 1 and more repeats, OpenWebText2, 40,000 steps"
        + (ours if data["ours"] else "")
    )
    return figure
