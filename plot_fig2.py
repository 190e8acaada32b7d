"""Figure 2: perplexity against the multiply-accumulates of one sequence of 256 tokens, for the models of
Table 1 and some with more repeats.

    python plot_fig2.py                                       # the paper's points
    python plot_fig2.py exps iridis --output_dir figures      # and our evaluations on top
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import guarded
from config.schema import Flag
from report.command import paths_and_flags
from report.figure2 import draw, size

OUTPUT = (Flag("output_dir", str, "figures", "folder for fig2.png, .pdf and .json"),)
TABLES = ("Table 1", "Figure 2")  # rows of the report that are drawn


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
