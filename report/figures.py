"""What the paper's figures share: width and type of a paper, colours that everyone can distinguish, saving
with the data beside.

    figure, axes = panels(1, 2, width=TWO_COLUMNS, height=2.6)
    save(figure, Path("figures"), "fig2", data)         # fig2.png, fig2.pdf, fig2.json
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drawing import load_matplotlib
from files import replace_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_COLUMN, TWO_COLUMNS = 3.3, 6.75  # inches
DPI = 300
# Okabe and Ito's colours; markers and dashes repeat what colours say, for print in grey
BLACK, ORANGE, GREEN, BLUE, PURPLE, SKY = "#000000", "#D55E00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9"
FAMILIES = {
    "Standard": (BLACK, "o"),
    "Block Universal": (ORANGE, "s"),
    "CoTFormer": (BLUE, "^"),
    "LN-CoTFormer": (BLUE, "^"),
    "LN-Block Universal": (ORANGE, "s"),
}
STYLE: dict[Any, Any] = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral"],
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "figure.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,
    "axes.unicode_minus": True,
}
FAINT = 0.45  # opacity of the paper's own points beside ours
LONGEST_NAME = 60


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure without a screen (Agg), in inches, and its axes as a 2-d array."""
    matplotlib = load_matplotlib()
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def checkpoint_name(checkpoint: str) -> str:
    """Experiment and file, short enough for a title."""
    name = "/".join(Path(checkpoint).parts[-2:])
    return name if len(name) <= LONGEST_NAME else "..." + name[3 - LONGEST_NAME :]


def plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def legend(figure: Figure, axes: Any, order: Sequence[str], columns: int) -> None:
    """One legend below all axes, each label once, in the order given."""
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    labels = [label for label in dict.fromkeys(order) if label in handles]
    figure.legend(
        [handles[label] for label in labels],
        [plain(label) for label in labels],
        loc="outside lower center",
        ncols=columns,
    )


def whiskers(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Lengths below and above each value, as errorbar wants them."""
    return [
        [max(value - low, 0) for value, (low, _) in zip(values, intervals, strict=True)],
        [max(high - value, 0) for value, (_, high) in zip(values, intervals, strict=True)],
    ]


def save(figure: Figure, folder: Path, stem: str, data: dict[str, Any]) -> None:
    """PNG, PDF and the numbers that are drawn; files that were there are replaced as a whole.

    Prints their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    formats: tuple[tuple[str, dict[str, Any]], ...] = (
        # without a date, the same numbers give the same bytes
        ("png", {"dpi": DPI}),
        ("pdf", {"metadata": {"CreationDate": None}}),
    )
    for suffix, options in formats:
        replace_atomically(
            folder / f"{stem}.{suffix}", functools.partial(figure.savefig, format=suffix, **options)
        )
    write_json(folder / f"{stem}.json", data)
    print(
        os.path.join(folder, f"{stem}.png"),
        os.path.join(folder, f"{stem}.pdf"),
        os.path.join(folder, f"{stem}.json"),
    )
