"""Figure 3: how the multiply-accumulates of one sequence grow with its length. A closed form: needs no
checkpoint and no GPU.

    python plot_fig3.py --output_dir figures
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import guarded
from config.schema import Flag
from report.command import paths_and_flags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTPUT = (Flag("output_dir", str, "figures", "folder for fig3.png, .pdf and .json"),)
LENGTHS = tuple(range(256, 12288 + 1, 256))
SIZES = {
    "base": ((12, 1), (24, 1), (48, 1)),
    "but": ((12, 2), (12, 3), (12, 5)),
    "cot": ((12, 2), (12, 3), (12, 5)),
}
BASELINE = "Standard 48"
DASHES = (":", "--", "-")  # from the smallest model of a family to the largest


def curves() -> list[dict[str, Any]]:
    """MACs at each length for each model, at the paper's width."""
    from config import add_defaults
    from models.macs import count_macs
    from models.variants import ALIASES, VARIANTS
    from report.paper import setting
    from report.rows import NAMES

    result: list[dict[str, Any]] = []
    for alias, sizes in SIZES.items():
        model = ALIASES.get(alias, alias)
        for dash, (layers, repeats) in zip(DASHES, sizes, strict=True):
            args = add_defaults(
                {
                    "model": model,
                    "n_layer": layers,
                    "n_repeat": repeats,
                    "n_embd": setting("n_embd"),
                    "n_head": setting("n_head"),
                    "vocab_size": setting("vocab_size"),
                }
            )
            label = f"{NAMES[model]} {layers}" + (f"x{repeats}" if VARIANTS[model].loop else "")
            macs = [count_macs(args, length) for length in LENGTHS]
            # one line hides the other
            label += "".join(f" (= {other['label']})" for other in result if other["macs"] == macs)
            result.append({"family": NAMES[model], "label": label, "dash": dash, "macs": macs})
    return result


def draw(data: dict[str, Any]) -> Figure:
    """Absolute on the left, as multiples of the 48-layer standard model on the right."""
    from report.figures import FAMILIES, TWO_COLUMNS, legend, panels

    figure, axes = panels(1, 2, TWO_COLUMNS, 3.2)
    absolute, relative = axes[0]
    baseline = next(curve["macs"] for curve in data["curves"] if curve["label"] == BASELINE)
    for curve in data["curves"]:
        style = {"color": FAMILIES[curve["family"]][0], "linestyle": curve["dash"]}
        absolute.plot(data["lengths"], [macs / 1e12 for macs in curve["macs"]], label=curve["label"], **style)
        relative.plot(
            data["lengths"],
            [macs / base for macs, base in zip(curve["macs"], baseline, strict=True)],
            **style,
        )
    absolute.set(
        xscale="log", yscale="log", ylabel=r"MACs of one sequence ($\times 10^{12}$)", title="absolute"
    )
    relative.set(ylabel="ratio of MACs", title=f"relative to {BASELINE}", ylim=(0, None))
    ticks = [256, 1024, 4096, 12288]
    absolute.set_xticks(ticks, [str(tick) for tick in ticks])
    absolute.minorticks_off()
    relative.set_xticks([256, 4096, 8192, 12288])
    for axis in axes[0]:
        axis.set_xlabel("sequence length (tokens)")
    legend(figure, axes, [curve["label"] for curve in data["curves"]], columns=3)
    figure.suptitle("Multiply-accumulates against sequence length (closed form, width 768)")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    words, flags = paths_and_flags(
        argv,
        "plot_fig3.py",
        "Figure 3: multiply-accumulates against sequence length.",
        OUTPUT,
        "",
        needed=False,
    )

    def work() -> int:
        from errors import UserError
        from report.figures import save

        if words:
            raise UserError(f"unexpected argument {str(words[0])!r}: this figure needs no data")
        data = {"figure": "3", "lengths": list(LENGTHS), "curves": curves()}
        save(draw(data), Path(flags["output_dir"]), "fig3", data)
        return 0

    return guarded("plot_fig3.py", work)


if __name__ == "__main__":
    sys.exit(main())
