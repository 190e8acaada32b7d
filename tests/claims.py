"""Sweeps with made-up losses, as trainings and eval.py would leave them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from config.sweep import Cell, read_sweep
from report.claims_cells import read_cells, settings_of
from report.claims_found import Finding, Findings, findings
from tests.summaries import evaluation, write

NOISE = (0.0, 0.001, -0.001, 0.002, -0.002)  # by seed
SMALL = {"dataset": "words", "n_embd": 32, "n_head": 2, "sequence_length": 32, "iterations": 40}
DEEP = {
    "n_layer": 3,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 2,
    "depth_embedding": "linear_learned",
}
MODELS: dict[str, dict[str, Any]] = {
    "n": {"model": "base", "n_layer": 3},
    "2n": {"model": "base", "n_layer": 6},
    "but": {"model": "but", "n_layer": 3, "n_repeat": 2},
    "cot": {"model": "cot", "n_layer": 3, "n_repeat": 2},
    "lncot": {"model": "lncot", **DEEP},
    "adm": {"model": "adm", **DEEP},
}
# as the paper has them
LOSSES = {"n": 3.0, "2n": 2.7, "but": 2.9, "cot": 2.8, "lncot": 2.75, "adm": 2.78}


def sweep_file(
    folder: Path,
    models: Sequence[str] = tuple(MODELS),
    seeds: Sequence[int] = (0, 1, 2),
    entries: Sequence[dict[str, Any]] = (),
    **flags: Any,
) -> Path:
    listed = [*({"label": name, **MODELS[name]} for name in models), *entries]
    shared = {**SMALL, "results_base_folder": str(folder / "exps"), **flags}
    content = {"flags": shared, "list": listed, "seeds": list(seeds)}
    return write(folder / "tiny.json", json.dumps(content))


def noise(cell: Cell) -> float:
    """Of a seed; another one for each model."""
    assert cell.seed is not None
    return NOISE[cell.seed % len(NOISE)] * (1 + list(LOSSES).index(cell.label.split()[0]))


def usual(cell: Cell) -> float | None:
    """The model's loss, with noise."""
    return LOSSES[cell.label] + noise(cell)


def fill(path: Path, loss_of: Callable[[Cell], float | None] = usual) -> None:
    """Finished and evaluated cells. loss_of: None where there is no training."""
    for cell in read_sweep(path).cells:
        loss, found = loss_of(cell), cell.resolved()
        assert found.args is not None and found.folder is not None
        if loss is None:
            continue
        flags = vars(found.args)
        write(found.folder / "summary.json", {"args": flags, "itr": flags["iterations"], "parameters": 1234})
        row = {"seconds": 10.0, "revision": "0123456789abcdef0123", "end_step": flags["iterations"]}
        write(found.folder / "segments.jsonl", json.dumps(row) + "\n")
        perplexity = math.exp(loss) if math.isfinite(loss) else 10.0
        summary = evaluation(
            found.folder, perplexity, 0.01, checkpoint=str(found.folder / "ckpt.pt"), **flags
        )
        values = {**json.loads(summary.read_text()), "bits_per_byte": loss / math.log(2)}
        write(summary, {**values, "val_loss": loss if math.isfinite(loss) else None})


def folder_of(path: Path, label: str, seed: int) -> Path:
    cells = read_sweep(path).cells
    (found,) = (cell.resolved().folder for cell in cells if (cell.label, cell.seed) == (label, seed))
    assert found is not None
    return found


def judged(path: Path) -> Findings:
    return findings(settings_of(read_cells(read_sweep(path))))


def finding(path: Path, text: str) -> Finding:
    (found,) = (one for one in judged(path).tested if one.claim.text.startswith(text))
    return found
