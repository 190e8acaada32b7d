"""Figure 2: perplexity against the multiply-accumulates of one sequence of 256 tokens, for the models of
Table 1 and some with more repeats.

    python plot_fig2.py                                       # the paper's points
    python plot_fig2.py exps iridis --output_dir figures      # and our evaluations on top
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import guarded
from config.schema import Flag
from report.command import paths_and_flags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTPUT = (Flag("output_dir", str, "figures", "folder for fig2.png, .pdf and .json"),)
LAYERS = (12, 24)
TABLES = ("Table 1", "Figure 2")  # rows of the report that are drawn
# where the label of a point stands: offset in points, horizontal and vertical alignment; by size (12x5 and
# 12x6 are close), else by family
LABELS = {"12x6": ((3, -3), "left", "top"), "CoTFormer": ((-4, -3), "right", "top")}
UPPER_RIGHT = ((3, 4), "left", "bottom")


def size(args: Namespace) -> str:
    """`48` or `12x3`."""
    from models.variants import VARIANTS

    return f"{args.n_layer}x{args.n_repeat}" if VARIANTS[args.model].loop else str(args.n_layer)


def paper_points() -> list[dict[str, Any]]:
    """The paper's models with the work that each takes."""
    from models.macs import count_macs
    from report.paper import paper_value
    from report.rows import NAMES, ROWS

    points = []
    for row in (row for row in ROWS if row.table in TABLES and row.paper):
        args, value = row.args(), paper_value(row.paper)
        points.append(
            {
                "family": NAMES[row.model],
                "n_layer": row.n_layer,
                "size": size(args),
                "macs": count_macs(args, args.sequence_length),
                "perplexity": value.perplexity,
                "sem_over_seeds": value.sem,
            }
        )
    return points


def our_points(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Our models of the figure; those that cannot be compared with it are named and left out."""
    from models.macs import count_macs
    from report.collect import collect
    from report.compare import compare
    from report.rows import NAMES

    report = compare(collect(folders))
    for problem in report.problems:
        print(f"warning: {problem}", file=sys.stderr)
    points = []
    for result in (result for result in report.results if result.row.table in TABLES and result.group):
        group = result.group
        assert group is not None, "chosen above"
        if result.decisive:
            print(f"left out: {result.row.label}, {'; '.join(result.decisive)}")
            continue
        args = group.first.args
        points.append(
            {
                "family": NAMES[args.model],
                "n_layer": args.n_layer,
                "size": size(args),
                "macs": count_macs(args, args.sequence_length),
                "perplexity": group.perplexity,
                "interval_over_windows": list(group.interval),
                "seeds": len(group.members),
                "checkpoints": [one.checkpoint for one in group.members],
            }
        )
    if not points:
        print("note: none of the evaluations is of a model of Figure 2; the figure shows the paper's points")
    return points


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


def main(argv: Sequence[str] | None = None) -> int:
    folders, flags = paths_and_flags(
        argv,
        "plot_fig2.py",
        "Figure 2: perplexity against multiply-accumulates.",
        OUTPUT,
        "[RESULTS_FOLDER...]",
        needed=False,
    )

    def work() -> int:
        from report.figures import save

        data = {
            "figure": "2",
            "sequence_length": 256,
            "ours": our_points(folders) if folders else [],
            "paper": paper_points(),
        }
        save(draw(data), Path(flags["output_dir"]), "fig2", data)
        return 0

    return guarded("plot_fig2.py", work)


if __name__ == "__main__":
    sys.exit(main())
