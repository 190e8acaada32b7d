"""Files as eval.py, get_ppl_per_mac.py and get_router_weights.py write them, with numbers of the tests'
own.
"""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import config

PAPER_FLAGS = {
    "dataset": "owt2",
    "sequence_length": 256,
    "batch_size": 8,
    "acc_steps": 16,
    "iterations": 40000,
    "warmup_percent": 0.2,
    "lr": 1e-3,
}
DEEP = {"n_layer": 24, "n_layer_begin": 2, "n_layer_end": 1, "n_repeat": 5}


def flags(model: str, **changes: Any) -> dict[str, Any]:
    """All flags of the paper's setting with some changed."""
    return vars(config.add_defaults({**PAPER_FLAGS, "model": model, **changes}))


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def evaluation(
    folder: Path,
    perplexity: float,
    half: float = 0.4,
    *,
    itr: int | None = None,
    checkpoint: str | None = None,
    age: float = 0.0,
    missing: tuple[str, ...] = (),
    **args: Any,
) -> Path:
    """An eval_summary_ckpt.json; age in seconds before now."""
    all_flags = flags(**args)
    low, high = perplexity - half, perplexity + half
    loss = math.log(perplexity)
    summary = {
        "val_loss": loss,
        "val_perplexity": perplexity,
        "val_acc": 0.4,
        "average_depth": 12.0,
        "n_batches": 100,
        "n_tokens": 4_000_000,
        "val_loss_std": 0.5,
        "val_loss_sem": 0.01,
        "val_loss_ci95": [math.log(low), math.log(high)],
        "val_perplexity_ci95": [low, high],
        "tokens_per_second": 1000.0,
        "itr": all_flags["iterations"] if itr is None else itr,
        "checkpoint": checkpoint or f"/nowhere/exps/owt2/{all_flags['model']}/{folder.name}/ckpt.pt",
        "args": all_flags,
        "parameters": 1000,
    }
    path = write(
        folder / "eval_summary_ckpt.json",
        {name: value for name, value in summary.items() if name not in missing},
    )
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def training(folder: Path, *, recorded: dict[str, Any] | None = None, **args: Any) -> Path:
    """The summary.json that a training leaves; `recorded` is more of it."""
    return write(folder / "summary.json", {"args": flags(**args), "world_size": 2, **(recorded or {})})


def schedule(*steps: int, warmup: float = 8000) -> dict[str, Any]:
    """That of a training in legs from each of the steps to the next; each one rises anew."""
    legs = [
        {"begin": begin, "end": end, "start_rate": 1e-5, "top_rate": 1e-3, "rise": warmup - 1.0}
        for begin, end in pairwise(steps)
    ]
    return {"shape": {"scheduler": "cos", "lr": 1e-3}, "legs": legs}


def point(
    macs: int, perplexity: float, seconds: float | None = None, paired: float | None = None, **label: float
) -> dict[str, Any]:
    """paired: half of the interval of the loss's difference to full depth, in nats; None: as files of
    before it was kept.
    """
    difference = (
        {}
        if paired is None
        else {"loss_difference": 0.1, "loss_difference_ci95": [0.1 - paired, 0.1 + paired]}
    )
    return {
        **label,
        **difference,
        "length_factors": [1.0] * 4,
        "macs": macs,
        "val_loss": math.log(perplexity),
        "val_perplexity": perplexity,
        "val_perplexity_ci95": [perplexity - 0.3, perplexity + 0.3],
        "average_depth": macs / 2e9,
        "seconds_per_sequence": seconds,
    }


def curve(
    path: Path,
    model: str,
    router: list[dict[str, Any]],
    fixed_depth: list[dict[str, Any]],
    itr: int = 60000,
    **args: Any,
) -> Path:
    all_flags = flags(model, **{**DEEP, **args})
    return write(
        path,
        {
            "checkpoint": f"/scratch/exps/owt2/{all_flags['model']}/a_run/ckpt.pt",
            "itr": itr,
            "model": all_flags["model"],
            "n_repeat": all_flags["n_repeat"],
            "sequence_length": all_flags["sequence_length"],
            "vocab_size": 50304,
            "n_tokens": 4_000_000,
            "router": router,
            "fixed_depth": fixed_depth,
            "args": all_flags,
        },
    )


def weights(
    path: Path, values: Any, cascade: str = "token", itr: int = 60000, model: str = "adm", **meta: Any
) -> Path:
    """router_weights_*.npz with its _meta.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(values, dtype=np.float32)
    np.savez_compressed(path, weights=array)
    write(
        path.with_name(f"{path.stem}_meta.json"),
        {
            "checkpoint": f"/scratch/exps/owt2/adm/a_run/ckpt_{itr}.pt",
            "itr": itr,
            "cascade": cascade,
            "n_tokens": len(array),
            "n_repeat": array.shape[1] + 1,
            "sequence_length": 256,
            "model": flags(model)["model"],
            **meta,
        },
    )
    return path
