"""The paper's numbers (Mohtashami et al., ICLR 2025) and those of one independent re-run, as report/paper.json holds them.

    paper_value(("table1", "cotformer", "12x3"))    # Value(perplexity=27.07, sem=0.01)
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAPER = Path(__file__).with_name("paper.json")


@dataclass(frozen=True)
class Value:
    """Mean perplexity over the paper's seeds, and its standard error over them where the paper gives one."""

    perplexity: float
    sem: float | None


@dataclass(frozen=True)
class Rerun:
    """Perplexity of one model, and the ends of its 95% interval over validation batches."""

    perplexity: float
    low: float
    high: float


@functools.cache
def paper() -> dict[str, Any]:
    """The whole file."""
    return json.loads(PAPER.read_text())


def setting(name: str) -> Any:
    """A training setting of the paper: lr, steps, effective_batch, ..."""
    return paper()["setting"][name]


def paper_value(keys: tuple[str, ...]) -> Value:
    """A perplexity of the paper by its place in the file."""
    found: Any = paper()
    for key in keys:
        found = found[key]
    return Value(*found) if isinstance(found, list) else Value(found, None)


def rerun_value(key: str | None) -> Rerun | None:
    """A perplexity of the independent re-run, or None where it has none."""
    return None if key is None else Rerun(*paper()["rerun_on_l4"][key])


def rerun_trajectory(key: str | None) -> tuple[tuple[int, float], ...]:
    """Steps of the re-run's training and its perplexity at each, on `trajectory_tokens()` tokens; empty where none were kept."""
    kept = paper()["rerun_on_l4"]["trajectories"]
    return tuple(zip(kept["steps"], kept[key], strict=True)) if key in kept else ()


def trajectory_tokens() -> int:
    """Validation tokens on which the re-run's trajectories were measured."""
    return paper()["rerun_on_l4"]["trajectories"]["n_tokens"]
