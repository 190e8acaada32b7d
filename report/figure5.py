"""Figure 5 of some files of router scores: reading them, its data and its drawing.

    draw(histograms([read_weights(path)]))                      # router_weights_*.npz

plot_fig5.py says what a cascade is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

CASCADES = {
    "raw": "each router's\nown score",
    "device": "lowest so far at a place\n(the authors' code here)",
    "position": "lowest so far at a rank\n(their code, top-k sorted)",
    "token": "lowest so far of a token\n(the right one)",
}
WIDTHS = (0.02, 0.01, 0.004, 0.002)  # of a bin: narrower ones for scores that lie close together
FEWEST_BINS = 25  # over the scores, while there is a narrower width


@dataclass(frozen=True)
class Weights:
    """weights (N tokens, n_repeat - 1) and where they come from."""

    path: Path
    weights: np.ndarray
    checkpoint: str
    steps: int | None
    cascade: str
    model: str
    split: str


def read_meta(path: Path) -> tuple[dict[str, Any], str]:
    """What is written beside the weights, and their cascade, which the file's name may say."""
    from files import read_json

    named = next((name for name in CASCADES if path.stem.endswith(f"_{name}")), None)
    stems = [path.stem, path.stem.removesuffix(f"_{named}")]
    places = list(dict.fromkeys(path.with_name(f"{stem}_meta.json") for stem in stems))
    meta = next((found for place in places if (found := read_json(place)) is not None), None)
    if meta is None:
        raise UserError(f"{path}: there is no {' or '.join(place.name for place in places)} beside it")
    cascade = named or meta.get("cascade")
    itr, texts = meta.get("itr"), [meta.get("checkpoint"), meta.get("model"), cascade]
    if (
        not all(isinstance(text, str) for text in texts)
        or cascade not in CASCADES
        or not (itr is None or type(itr) is int)
    ):
        raise UserError(
            f"{path}: its _meta.json must name the checkpoint, the model, the step (itr) and the cascade"
            f" ({', '.join(CASCADES)})"
        )
    return meta, cascade


def read_weights(path: Path) -> Weights:
    """Raises UserError."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            weights = np.asarray(file["weights"])  # bytes, where the entry is no array
    except (
        Exception
    ) as error:  # whatever a foreign file makes of numpy's reader, which may be that it lacks memory
        raise UserError(
            f"{path} holds no readable array 'weights': {' '.join(str(error).split())[:100]}"
        ) from None
    if weights.ndim != 2 or 0 in weights.shape or weights.dtype.kind != "f":
        raise UserError(
            f"{path}: weights must be floats, tokens x repeats, not {weights.dtype} of shape {weights.shape}"
        )
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1):
        raise UserError(f"{path}: weights must lie between 0 and 1")
    meta, cascade = read_meta(path)
    if cascade == "position" and "device" not in meta:
        print(
            f"note: {path} is of an earlier version, whose position cascade took scores from before the top-k"
            " of their pass; get_router_weights.py writes it anew",
            file=sys.stderr,
        )
    return Weights(
        path,
        weights,
        meta["checkpoint"],
        meta.get("itr"),
        cascade,
        str(meta.get("model", "")),
        str(meta.get("split", "")),
    )


def label_of(one: Weights, labels: Mapping[Path, str]) -> str:
    """For the legend: the label that it was given, else experiment and file; and the step."""
    from report.figures import checkpoint_name

    steps = "" if one.steps is None else f"{one.steps:,} steps"
    if one.path in labels:
        return ", ".join(filter(None, (labels[one.path], steps)))
    return f"{steps}: {checkpoint_name(one.checkpoint)}" if steps else checkpoint_name(one.checkpoint)


def histograms(files: Sequence[Weights], labels: Mapping[Path, str] = MappingProxyType({})) -> dict[str, Any]:
    """Counts of tokens by weight: a row for each cascade, a column for each repeat, an entry for each
    file.
    """
    import numpy as np

    from report.rows import NAMES

    low, high = min(float(one.weights.min()) for one in files), max(float(one.weights.max()) for one in files)
    width = next((width for width in WIDTHS if high - low >= FEWEST_BINS * width), WIDTHS[-1])
    edges = np.linspace(0, 1, round(1 / width) + 1)
    first = min(int(np.searchsorted(edges, low, "right")) - 1, len(edges) - 2)
    last = max(int(np.searchsorted(edges, high)), first + 1)
    rows = []
    for cascade in (name for name in CASCADES if any(one.cascade == name for one in files)):
        rows.append(
            {
                "cascade": cascade,
                "files": [
                    {
                        "file": str(one.path),
                        "checkpoint": one.checkpoint,
                        "steps": one.steps,
                        "tokens": len(one.weights),
                        "label": label_of(one, labels),
                        "counts": [np.histogram(column, edges)[0].tolist() for column in one.weights.T],
                        "mean": [float(column.mean()) for column in one.weights.T],
                    }
                    for one in files
                    if one.cascade == cascade
                ],
            }
        )
    models = dict.fromkeys(NAMES.get(one.model, one.model) for one in files)
    splits = dict.fromkeys(one.split for one in files if one.split)
    return {
        "figure": "5",
        "models": list(models),
        "splits": list(splits),
        "edges": edges.tolist(),
        "span": [float(edges[first]), float(edges[last])],
        "repeats": max(one.weights.shape[1] for one in files),
        "rows": rows,
    }


def panel(
    axis: Any, edges: Sequence[float], row: dict[str, Any], repeat: int, colours: dict[str, str]
) -> None:
    """Share of tokens in each bin, filled so that the histogram underneath is seen, and the means as
    dashes.
    """
    for one in row["files"]:
        if repeat < len(one["counts"]):
            colour = colours[one["label"]]
            shares = [100 * count / one["tokens"] for count in one["counts"][repeat]]
            axis.stairs(shares, edges, color=colour, fill=True, alpha=0.25)
            axis.stairs(shares, edges, color=colour, linewidth=0.9, label=one["label"])
            axis.axvline(one["mean"][repeat], color=colour, linestyle="--", linewidth=0.8)


def draw(data: dict[str, Any], scale: str = "all") -> Figure:
    from matplotlib.ticker import MaxNLocator

    from report.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, TWO_COLUMNS, legend, panels, plain

    rows, repeats = data["rows"], data["repeats"]
    labels = dict.fromkeys(one["label"] for row in rows for one in row["files"])
    palette = (ORANGE, BLUE, GREEN, PURPLE, SKY, BLACK)
    colours = {label: palette[index % len(palette)] for index, label in enumerate(labels)}
    figure, axes = panels(
        len(rows),
        repeats,
        TWO_COLUMNS,
        0.9 + 1.35 * len(rows) + 0.17 * len(labels),
        sharex=True,
        sharey=scale,
    )
    for line, row in zip(axes, rows, strict=True):
        for repeat, axis in enumerate(line):
            panel(axis, data["edges"], row, repeat, colours)
        line[0].set_ylabel(f"{CASCADES[row['cascade']]}\nshare of tokens (%)", fontsize=8)
    for repeat in range(repeats):
        axes[0][repeat].set_title(f"after pass {repeat + 1} of {repeats + 1}")
        axes[-1][repeat].set_xlabel("score")
    axes[0][0].set_xlim(*data["span"])  # every panel's
    axes[0][0].xaxis.set_major_locator(MaxNLocator(4))
    legend(figure, axes, list(labels), columns=1)
    figure.suptitle(
        plain(
            f"{', '.join(data['models'])}: the routers' scores of tokens, from 0 (stop) to 1 (go on to the"
            " next pass)\nshare of the"
            f" tokens{' of split ' + ' and '.join(data['splits']) if data['splits'] else ''} in bins of"
            f" {data['edges'][1]:g}, dashed: mean"
        )
    )
    return figure
