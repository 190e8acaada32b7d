"""Evaluations by name, from rows of metrics.jsonl and from summaries.

for name, one in evaluations(by_kind(rows)).items():
    one.during, one.final                               # "" is the name of the one that has none
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# kinds of the rows of evaluations: alone, or before @ and the evaluation's name
DURING, AT_END = "eval", "final"
UNNAMED = "validation"  # what people are told is the name of an evaluation that has none
# in their rows, beside what they measure
NORMS = ("grad_norm", "max_grad_norm", "mean_grad_norm")
COUNTS = ("n_batches", "n_prompts", "n_samples")
NOT_MEASURED = frozenset(("step", "extension", "overflows", *COUNTS, *NORMS))
OWN_SIGN = re.compile(r"(final_)?pass@[0-9]+(?=@|$)")  # quantities that have the sign themselves
Row = dict[str, Any]


@dataclass
class Evaluated:
    """What metrics.jsonl has of one evaluation: rows of those during training and of those at the end."""

    name: str
    during: list[Row] = field(default_factory=list)
    final: list[Row] = field(default_factory=list)

    def by_step(self, key: str, at_end: bool = False) -> dict[int, Row]:
        """The newest row of each step, in order of step, that has a number under a key."""
        found = {}
        for row in self.final if at_end else self.during:
            step = as_float(row.get("step"))
            if step is not None and as_float(row.get(key)) is not None:
                found[int(step)] = row
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class Best:
    """What best.pt is the best by: a quantity of an evaluation, its value, and the step."""

    quantity: str
    evaluation: str
    value: float
    step: int

    def __str__(self) -> str:
        of = f"@{self.evaluation}" if self.evaluation else ""
        return f"{self.quantity}{of} {self.value:.6g} at step {self.step:,}"


def split_name(text: Any) -> tuple[str, str]:
    """A kind of rows, or a quantity, and the name of the evaluation that it is of: KIND@NAME, or KIND alone
    where the evaluation has none; pass@K is a quantity. Both are empty for what is no text.
    """
    if not isinstance(text, str):
        return "", ""
    own = OWN_SIGN.match(text)
    begin = own.end() if own else 0  # of the text in which the sign comes before a name
    kind, _, name = text[begin:].partition("@")
    return text[:begin] + kind, name


def measured(row: Row) -> dict[str, float]:
    """The numbers that an evaluation measured, by their names."""
    found = {}
    for key, value in row.items():
        number = None if key in NOT_MEASURED else as_float(value)
        if number is not None:
            found[key] = number
    return found


def by_kind(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of metrics.jsonl by their kind, those without one left out."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        kind = row.get("kind")
        if isinstance(kind, str):
            found[kind].append(row)
    return found


def evaluations(kinds: Mapping[str, list[Row]]) -> dict[str, Evaluated]:
    """Each evaluation by its name, in the order of their first rows. kinds: from `by_kind`."""
    found: dict[str, Evaluated] = {}
    for kind, rows in kinds.items():
        when, name = split_name(kind)
        if when in (DURING, AT_END):
            one = found.setdefault(name, Evaluated(name))
            (one.during if when == DURING else one.final).extend(rows)
    return found


def by_evaluation(summary: Row, key: str) -> dict[str, float]:
    """The numbers that a summary has under KEY and KEY@NAME, by the names of the evaluations."""
    found = {}
    for each, value in summary.items():
        quantity, name = split_name(each)
        if quantity == key and (number := as_float(value)) is not None:
            found[name] = number
    return found


def of_sources(evaluation: Row, key: str) -> dict[str, float]:
    """The numbers that eval.py's summary of a mixture has under a key of each source, by name."""
    sources = evaluation.get("sources")
    found = {}
    for name, source in sources.items() if isinstance(sources, dict) else ():
        number = as_float(source.get(key)) if isinstance(source, dict) else None
        if number is not None:
            found[str(name)] = number
    return found


def final_rows(summary: Row) -> dict[str, Row]:
    """The last evaluations that a summary states, by name, as rows."""
    found: dict[str, Row] = {}
    for key, value in summary.items():
        if key.startswith("final_"):
            quantity, name = split_name(key.removeprefix("final_"))
            row = found.setdefault(name, {"kind": AT_END, "step": summary.get("itr")})
            row[quantity] = value
    return found


def foremost(evaluated: Mapping[str, Row], key: str, best: Best | None) -> str | None:
    """The name of the evaluation that stands for all: the one that is tracked, else the first, of those that
    have a number under a key; None where none has.
    """
    names = [name for name, row in evaluated.items() if as_float(row.get(key)) is not None]
    if best is not None and best.evaluation in names:
        return best.evaluation
    return next(iter(names), None)


def as_float(value: Any) -> float | None:
    """A plausible number, else None: files may hold anything."""
    is_usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if is_usable else None
