"""Sums as examples for fine-tuning, prepared as users prepare them, and small trainings on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.arithmetic import write
from tests.corpora import prepare
from tests.programs import ONE_LAYER

# main.py's flags of a training on `sums`
SMALL: dict[str, Any] = {
    **ONE_LAYER,
    "n_embd": 16,
    "n_head": 2,
    "sequence_length": 16,
    "iterations": 16,
    "eval_freq": 8,
    "save_checkpoint_freq": 5,
    "log_freq": 1,
}


def sums(folder: Path, count: int = 60) -> Path:
    """A --data_dir with the datasets chat, pairs and prompts, in bytes."""
    write(folder / "lines", count=count)
    for form in ("chat", "pairs", "prompts"):
        options = {"format": form, "tokenizer": "bytes", "val_share": 0.2}
        assert prepare(folder / "datasets" / form, folder / "lines" / f"{form}.jsonl", **options) == 0
    return folder / "datasets"
