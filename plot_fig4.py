"""Figure 4: perplexity at every compute budget, routed or with all tokens stopping after the same pass.

    python plot_fig4.py iridis/adm-ppl-per-mac/run_0/ppl_per_mac.json --output_dir figures
    python plot_fig4.py lncot_adm/ppl_per_mac.json but_mod/ppl_per_mac.json        # models side by side
    python plot_fig4.py v1=a/ppl_per_mac.json v2=b/ppl_per_mac.json                # labels for the legend

The files come from get_ppl_per_mac.py. All budgets of a model read the same windows, so bars are 95%
intervals of the paired difference to full depth; older files have intervals over windows of one model. Where
the files hold measured seconds, a second panel shows them. A second row shows the points near the best one
closely, where the rest would hide the distance between curves. Routing by capacity looks at later tokens: see
the README, "Evaluate".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from config import guarded
from config.schema import Flag
from report.command import paths_and_flags
from report.figure4 import NOTE, draw, name_of, paper_points, series

OUTPUT = (Flag("output_dir", str, "figures", "folder for fig4.png, .pdf and .json"),)


def main(argv: Sequence[str] | None = None) -> int:
    labels: dict[Path, str] = {}
    paths, flags = paths_and_flags(
        argv,
        "plot_fig4.py",
        "Draw Figure 4: perplexity against compute.",
        OUTPUT,
        "[LABEL=]PPL_PER_MAC_JSON...",
        labels=labels,
    )

    def work() -> int:
        from errors import UserError
        from report.collect import read_curve
        from report.figures import save

        curves = [read_curve(path) for path in paths]
        lengths = {curve.sequence_length for curve in curves}
        if len(lengths) > 1:
            raise UserError(
                f"the files are of sequences of {' and '.join(map(str, sorted(lengths)))} tokens: their costs"
                " cannot share an axis"
            )
        models = [
            f"{labels[curve.path]}: {name_of(curve)}" if curve.path in labels else name_of(curve)
            for curve in curves
        ]
        data = {
            "figure": "4",
            "note": NOTE,
            "sequence_length": lengths.pop(),
            "models": models,
            "files": [str(path) for path in paths],
            "curves": series(curves, labels),
            "paper": paper_points(curves),
        }
        save(draw(data), Path(flags["output_dir"]), "fig4", data)
        return 0

    return guarded("plot_fig4.py", work)


if __name__ == "__main__":
    sys.exit(main())
