"""The paper's numbers (Mohtashami et al., ICLR 2025) and those of one independent re-run, as
report/paper.json holds them.

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
    """Mean perplexity over the paper's seeds, and its standard error over them; None where the paper gives
    none.
    """

    perplexity: float | None
    sem: float | None


@dataclass(frozen=True)
class Rerun:
    """Perplexity of one model, and the ends of its 95% interval over validation batches. What is not known is
    None.

    accuracy: share of the tokens. gmacs: multiply-accumulates x 1e9 of 256 tokens. windows_per_batch: of the
    interval's batches.
    """

    perplexity: float
    low: float
    high: float
    accuracy: float | None = None
    gmacs: float | None = None
    windows_per_batch: int | None = None
    remark: str | None = None


@functools.cache
def paper() -> dict[str, Any]:
    """The whole file."""
    return json.loads(PAPER.read_text())


def setting(name: str) -> Any:
    """A training setting of the paper: lr, steps, effective_batch, ..."""
    return paper()["setting"][name]


def paper_value(keys: tuple[str, ...]) -> Value:
    """A perplexity of the paper by its place in the file; without a place there is none."""
    if not keys:
        return Value(None, None)
    found: Any = paper()
    for key in keys:
        found = found[key]
    return Value(*found) if isinstance(found, list) else Value(found, None)


def rerun_value(key: str | None) -> Rerun | None:
    """A model of the independent re-run, or None where it has none."""
    if key is None:
        return None
    found = dict(paper()["rerun_on_l4"][key])
    low, high = found.pop("ci95")
    return Rerun(low=low, high=high, **found)


def rerun_trajectory(key: str | None) -> tuple[tuple[int, float], ...]:
    """Steps of the re-run's training and its perplexity at each, on `trajectory_tokens()` tokens; empty
    where none were kept.
    """
    kept = paper()["rerun_on_l4"]["trajectories"]
    return tuple(zip(kept["steps"], kept[key], strict=True)) if key in kept else ()


def trajectory_tokens() -> int:
    """Validation tokens on which the re-run's trajectories were measured."""
    return paper()["rerun_on_l4"]["trajectories"]["n_tokens"]
