"""Random values of flags for a sweep: draw k of a flag is a pure function of the seed, k and the flag's name,
so that more draws change none of those before.

    {"lr": {"log_uniform": [1e-4, 1e-2]}, "dropout": {"uniform": [0, 0.2]},
     "n_layer": {"integer": [2, 8]}, "n_embd": {"choice": [64, 128]}}
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from config.schema import Flag
from config.values import kind_of, nearest

UNIFORM, LOG_UNIFORM, INTEGER, CHOICE = "uniform", "log_uniform", "integer", "choice"
DISTRIBUTIONS = (UNIFORM, LOG_UNIFORM, INTEGER, CHOICE)
DIGITS = 4  # significant ones of a drawn number, which stands in names of folders


@dataclass(frozen=True)
class Distribution:
    """values: the choices, or the lowest and the highest value, both inclusive."""

    flag: str
    kind: str
    values: Sequence[Any]

    def draw(self, seed: int, k: int) -> Any:
        digest = hashlib.sha256(f"{seed} {k} {self.flag}".encode()).digest()
        share = (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # in [0, 1)
        if self.kind == CHOICE:
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.kind == INTEGER:
            return low + int(share * (high - low + 1))
        if self.kind == UNIFORM:
            number = low + share * (high - low)
        else:
            number = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return min(max(float(f"{number:.{DIGITS}g}"), low), high)


def named(spec: Any) -> tuple[str, list[Any]]:
    """Kind and values of {"KIND": [VALUES]}. Raises ValueError."""
    forms = f"an object of one of {', '.join(DISTRIBUTIONS)} and a list"
    if not isinstance(spec, dict) or len(spec) != 1:
        raise ValueError(f"must be {forms}, not {str(spec)[:60]}")
    kind, values = next(iter(spec.items()))
    if kind not in DISTRIBUTIONS:
        raise ValueError(f"has no distribution {kind!r}{nearest(kind, DISTRIBUTIONS)}; it must be {forms}")
    if not isinstance(values, list) or not values:
        raise ValueError(f"{kind} must have a list of values, not {str(values)[:60]}")
    if kind != CHOICE and len(values) != 2:
        raise ValueError(f"{kind} must have the lowest and the highest value, not {len(values)} values")
    return kind, values


def distribution(flag: Flag, kind: str, values: Sequence[Any]) -> Distribution:
    """values: converted ones of the flag. Raises ValueError."""
    number: Any = int if kind == INTEGER else float
    if kind != CHOICE:
        if kind_of(flag) is not number or flag.many or None in values:
            other = CHOICE if flag.many else {int: INTEGER, float: UNIFORM}.get(kind_of(flag), CHOICE)
            raise ValueError(f"takes no {kind}; give {other}")
        if values[0] >= values[1]:
            raise ValueError(f"{kind} must go from a lower to a higher value, not {list(values)}")
    if kind == LOG_UNIFORM and values[0] <= 0:
        raise ValueError(f"{kind} must begin above 0, not at {values[0]}")
    return Distribution(flag.name, kind, values)
