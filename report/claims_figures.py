"""Figures 2, 4 and 5 of a sweep, drawn as those of the paper's own models."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import UserError
from report.claims_cells import Setting, Trained
from report.pages import Block, Items, Picture, Text
from report.rows import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160
MOST_LABELS = 4  # checkpoints in a picture of scores


def png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    return image.getvalue()


def figure_2(setting: Setting, stem: str) -> tuple[list[Block], dict[str, Any]]:
    """The picture, or a line that says why there is none; and its data."""
    from report.figure2 import draw

    data = points_of(setting)
    if not data["ours"]:
        return [Text("Figure 2 is not drawn: no model has an evaluation.")], data
    text = (
        "Figure 2: perplexity against the multiply-accumulates of a sequence; means over seeds, bars: their"
        " standard errors."
    )
    return [Picture(stem, png(draw(data)), text + (f" {setting.label}." if setting.label else ""))], data


def points_of(setting: Setting) -> dict[str, Any]:
    """A point for each model, in the form of `report.figure2`."""
    from models.macs import count_macs
    from report.figure2 import RESERVED, size

    points = []
    for kind in sorted(setting.kinds, key=lambda kind: (kind.n_layer, kind.n_repeat)):
        ours = [one for one in setting.of(kind).values() if one.evaluation is not None]
        if not ours:
            continue
        values = [one.evaluation.perplexity for one in ours if one.evaluation is not None]
        args, mean = ours[0].args, statistics.fmean(values)
        assert args is not None, "it has been trained"
        half = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        points.append(
            {
                "family": RESERVED if kind.model == "cot" and kind.reserved else NAMES[args.model],
                "n_layer": args.n_layer,
                "size": size(args),
                "macs": count_macs(args, args.sequence_length),
                "perplexity": mean,
                "interval_over_windows": [mean - half, mean + half],
                "seeds": len(values),
            }
        )
    loops = {point["n_layer"] for point in points if point["family"] != NAMES["base"]}
    return {
        "sequence_length": setting.trainings[0].args.sequence_length if setting.trainings[0].args else 0,
        "layers": sorted(loops or {point["n_layer"] for point in points}),
        "title": "Perplexity against compute, means over seeds; bars: standard errors over seeds",
        "paper": [],
        "ours": points,
    }


def figure_4(setting: Setting, stem: str) -> tuple[list[Block], dict[str, Any]]:
    """One seed of each adaptive model, with depth embedding if there is one: the curves of all would hide
    each other.
    """
    from report.figure4 import NOTE, draw, name_of, paper_points, series

    chosen = _one_of_each([one for one in setting.trainings if one.curve is not None])
    curves = [one.curve for one in chosen if one.curve is not None]
    if not curves:
        return [Text("Figure 4 is not drawn: no adaptive model has been measured at several budgets.")], {}
    data = {
        "figure": "4",
        "note": NOTE,
        "sequence_length": curves[0].sequence_length,
        "models": [name_of(curve) for curve in curves],
        "curves": series(curves),
        "paper": paper_points(curves),
    }
    seeds = ", ".join(f"{one.name}, seed {one.seed}" for one in chosen)
    text = f"Figure 4: perplexity at each compute budget, of one seed ({seeds}); the claims count all."
    return [Picture(stem, png(draw(data)), text)], data


def _one_of_each(trainings: Sequence[Trained]) -> list[Trained]:
    found: dict[str, Trained] = {}
    for one in sorted(trainings, key=lambda one: not one.kind.embedding):
        found.setdefault(one.kind.model, one)
    return list(found.values())


def figure_5(setting: Setting, stem: str) -> tuple[list[Block], dict[str, Any]]:
    from report.figure5 import draw, histograms, read_weights

    files, labels, problems = [], dict[Path, str](), list[str]()
    for one in setting.trainings:
        paths = sorted(one.folder.glob("router_weights*.npz")) if one.folder else []
        for path in paths:
            try:
                files.append(read_weights(path))
                labels[path] = f"{one.name}, seed {one.seed}"
            except UserError as error:
                problems.append(str(error))
    blocks: list[Block] = [Items(problems)] if problems else []
    models = [one.model for one in files]
    own = [one for one in files if one.model == models[0]]
    seen = list(dict.fromkeys(labels[one.path] for one in own))[:MOST_LABELS]
    shown = [one for one in own if labels[one.path] in seen]
    if not shown:
        return [*blocks, Text("Figure 5 is not drawn: no router scores have been written.")], {}
    data = histograms(shown, labels)
    of = "" if len(shown) == len(files) else f" (of {len(shown)} of {len(files)} files)"
    text = f"Figure 5: the routers' scores of tokens after each pass{of}. The page draws no verdict from it."
    return [*blocks, Picture(stem, png(draw(data)), text)], data
