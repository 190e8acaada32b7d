"""Figure 5: how the router's weights are distributed at each repeat, for one or several checkpoints.

    python plot_fig5.py router_weights_ckpt_40000.npz router_weights_ckpt.npz --output_dir figures
    python plot_fig5.py run_0/router_weights_*.npz      # panels by cascade (rows), checkpoints by colour
    python plot_fig5.py v1=a/router_weights.npz v2=b/router_weights.npz       # labels for the legend

Axes begin and end where the scores do; all panels have one scale (--scale row: those of a row). The files
come from get_router_weights.py, which can cascade the scores of successive repeats in four ways:

    raw        each router's own score
    device     the authors' code: the minimum so far by place in the array, in the order in which the device's
               unsorted top-k leaves it; a place holds other tokens after a top-k, so it mixes tokens
    position   the same with a sorted top-k: the minimum so far by rank
    token      the right one: the minimum so far of the same token
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from config import guarded
from config.schema import Flag
from report.command import paths_and_flags
from report.figure5 import draw, histograms, read_weights

OUTPUT = (
    Flag("output_dir", str, "figures", "folder for fig5.png, .pdf and .json"),
    Flag(
        "scale",
        str,
        "all",
        "which panels share the scale of their y axis: all, or those of a row",
        choices=("all", "row"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    labels: dict[Path, str] = {}
    paths, flags = paths_and_flags(
        argv,
        "plot_fig5.py",
        "Draw Figure 5: distribution of router weights.",
        OUTPUT,
        "[LABEL=]ROUTER_WEIGHTS_NPZ...",
        labels=labels,
    )

    def work() -> int:
        from report.figures import save

        data = histograms([read_weights(path) for path in paths], labels)
        save(draw(data, flags["scale"]), Path(flags["output_dir"]), "fig5", data)
        return 0

    return guarded("plot_fig5.py", work)


if __name__ == "__main__":
    sys.exit(main())
