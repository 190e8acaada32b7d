"""Figure 2, perplexity against multiply-accumulates: its drawing.

    draw({"sequence_length": 256, "paper": [...], "ours": [...]})       # plot_fig2.py has the points

Each point has family, n_layer, size, macs and perplexity; of ours also the ends of an interval.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS = (12, 24)
RESERVED = "CoTFormer, reserved layers"
JOINED = ("Standard", "Block Universal", "CoTFormer")  # families whose models are a series of sizes
# where the label of a point stands: offset in points, horizontal and vertical alignment; by size (12x5 and
# 12x6 are close), else by family
LABELS = {"12x6": ((3, -3), "left", "top"), "CoTFormer": ((-4, -3), "right", "top")}
UPPER_RIGHT = ((3, 4), "left", "bottom")


def size(args: Namespace) -> str:
    """`48` or `12x3`."""
    from models.variants import VARIANTS

    return f"{args.n_layer}x{args.n_repeat}" if VARIANTS[args.model].loop else str(args.n_layer)


def styles() -> dict[str, tuple[str, str]]:
    """Colour and marker of each family."""
    from report.figures import BLUE, FAMILIES, GREEN, PURPLE, SKY

    return {
        **FAMILIES,
        RESERVED: (BLUE, "<"),
        "LN-CoTFormer": (GREEN, "D"),
        "Adaptive LN-CoTFormer": (PURPLE, "v"),
        "Adaptive LN-Block Universal": (SKY, "P"),
    }


def _annotate(axis: Any, points: Sequence[dict[str, Any]], colour: str, family: str) -> None:
    """The size beside each point."""
    from matplotlib.patheffects import withStroke

    for point in points:
        offset, horizontal, vertical = LABELS.get(point["size"]) or LABELS.get(family, UPPER_RIGHT)
        axis.annotate(
            point["size"],
            (point["macs"] / 1e9, point["perplexity"]),
            xytext=offset,
            textcoords="offset points",
            fontsize=8,
            color=colour,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            ha=horizontal,
            va=vertical,
        )


def panel(axis: Any, layers: int, data: dict[str, Any]) -> None:
    """Models of that many layers, and the standard ones of all sizes for comparison. Where the paper's points
    are drawn, theirs have the lines and the sizes.
    """
    from report.figures import FAINT, whiskers

    def here(point: dict[str, Any]) -> bool:
        return point["family"] == "Standard" or point["n_layer"] == layers

    for family in dict.fromkeys(point["family"] for point in (*data["paper"], *data["ours"])):
        colour, marker = styles()[family]
        line = "-" if family == "CoTFormer" else "--"
        points = [point for point in data["paper"] if point["family"] == family and here(point)]
        if points:
            axis.plot(
                [point["macs"] / 1e9 for point in points],
                [point["perplexity"] for point in points],
                color=colour,
                marker=marker,
                markerfacecolor="white",
                linestyle=line,
                alpha=FAINT if data["ours"] else 1,
                label=f"{family}, paper",
            )
            _annotate(axis, points, colour, family)
        ours = [point for point in data["ours"] if point["family"] == family and here(point)]
        if ours:
            values = [point["perplexity"] for point in ours]
            axis.errorbar(
                [point["macs"] / 1e9 for point in ours],
                values,
                whiskers(values, [point["interval_over_windows"] for point in ours]),
                color=colour,
                marker=marker,
                linestyle="none" if data["paper"] or family not in JOINED else line,
                elinewidth=0.7,
                capsize=2,
                zorder=3,
                label=f"{family}, ours",
            )
            if not data["paper"]:
                _annotate(axis, ours, colour, family)
    axis.set_title(f"{layers} layers")
    length = data["sequence_length"]
    axis.set_xlabel(rf"MACs of a {length}-token sequence ($\times 10^9$)")


def draw(data: dict[str, Any]) -> Figure:
    """data may have `layers`, of the panels, and a `title`; without, they are the paper's."""
    from report.figures import TWO_COLUMNS, legend, panels

    all_layers = data.get("layers", LAYERS)
    figure, axes = panels(1, len(all_layers), TWO_COLUMNS, 3.2 if data["ours"] else 2.9, sharey=True)
    for axis, layers in zip(axes[0], all_layers, strict=True):
        panel(axis, layers, data)
        axis.margins(x=0.12, y=0.07)
    axes[0][0].set_ylabel("validation perplexity")
    for axis in axes[0][1:]:
        axis.tick_params(left=False)
    legend(
        figure, axes, [f"{family}, {whose}" for family in styles() for whose in ("paper", "ours")], columns=3
    )
    ours = (
        f"\nours: {len(data['ours'])} models, bars: 95% intervals over texts of one model; checkpoints are"
        " named in fig2.json"
    )
    of_paper = "Perplexity against compute: Table 1 and more repeats, OpenWebText2, 40,000 steps"
    figure.suptitle(data.get("title", of_paper + (ours if data["ours"] else "")))
    return figure
