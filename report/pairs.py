"""Two evaluations of the same text, compared on each window: far sharper than two intervals beside each
other.

    found = pair(Path("a/eval_summary_ckpt.json"), Path("b/eval_summary_ckpt.json"))        # raises UserError
    found.difference.mean, found.difference.low, found.difference.high      # nats a token, a's loss minus b's
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.bins import data_differences
from errors import UserError
from files import read_json
from optim.intervals import Interval, interval
from optim.names import window_losses_of
from optim.window_losses import WindowLosses, read_windows


@dataclass(frozen=True)
class Pair:
    """difference: of the losses of a and b, in nats a token. correlation: of their windows' losses; None
    where one has no spread.
    """

    difference: Interval
    n_windows: int
    correlation: float | None

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Perplexity of a over that of b, and the ends of its 95% interval."""
        found = self.difference
        return math.exp(found.mean), math.exp(found.low), math.exp(found.high)

    @property
    def is_decided(self) -> bool:
        return not self.difference.low <= 0 <= self.difference.high


def _read(path: Path) -> tuple[dict[str, Any], WindowLosses]:
    """Raises UserError where the file is no summary of eval.py, or the losses of its windows are not
    beside it.
    """
    summary = read_json(path)
    if (
        not isinstance(summary, dict)
        or not isinstance(summary.get("args"), dict)
        or not isinstance(summary.get("val_loss"), float)
    ):
        raise UserError(f"{path} is no eval_summary_*.json of eval.py")
    windows = read_windows(path.with_name(window_losses_of(path.name)))
    if abs(windows.losses.mean() - summary["val_loss"]) > 1e-6:
        raise UserError(
            f"{path}: the losses of single windows beside it are of another evaluation; evaluate the"
            " checkpoint again"
        )
    return summary, windows


def pair(a: Path, b: Path) -> Pair:
    """Compare two evaluations by the windows that both have read. Raises UserError where they read other text
    or have too few in common.
    """
    (one, of_a), (other, of_b) = _read(a), _read(b)
    lengths = one["args"].get("sequence_length"), other["args"].get("sequence_length")
    if lengths[0] != lengths[1]:
        raise UserError(
            f"{a} and {b} read windows of {lengths[0]} and {lengths[1]} tokens: they cannot be compared in"
            " pairs"
        )
    if not isinstance(one.get("data"), dict) or not isinstance(other.get("data"), dict):
        raise UserError(f"{a} or {b} does not say which data it read; evaluate again")
    if data_differences({"val": one["data"]}, {"val": other["data"]}):
        raise UserError(f"{a} and {b} read other data: they cannot be compared in pairs")
    _, in_a, in_b = np.intersect1d(of_a.windows, of_b.windows, assume_unique=True, return_indices=True)
    fuller, common = (of_a, in_a) if of_a.windows.size >= of_b.windows.size else (of_b, in_b)
    documents = None if fuller.documents is None else fuller.documents[common]
    left, right = of_a.losses[in_a], of_b.losses[in_b]
    difference = interval(left - right, documents)
    if difference is None:
        raise UserError(f"{a} and {b} have {in_a.size} windows in common: too few to be compared in pairs")
    has_spread = bool(np.ptp(left) and np.ptp(right))
    return Pair(difference, in_a.size, float(np.corrcoef(left, right)[0, 1]) if has_spread else None)


def section(a: Path, b: Path) -> list[str]:
    """Lines for people. Raises UserError."""
    found = pair(a, b)
    mean, low, high = found.ratio
    verdict = (
        ("A is better" if found.difference.mean < 0 else "B is better")
        if found.is_decided
        else "not decided by this text"
    )
    correlation = (
        "" if found.correlation is None else f"; the windows' losses correlate {found.correlation:.3f}"
    )
    change = found.difference
    return [
        f"in pairs, on {found.n_windows:,} windows that both read ({change.clusters.words()}){correlation}:",
        (
            f"  loss A - B          {change.mean:+.4f} nats a token, 95% {change.low:+.4f} to"
            f" {change.high:+.4f}: {verdict}"
        ),
        f"  perplexity A / B    {mean:.4f}, 95% {low:.4f} to {high:.4f}",
    ]
