"""Runs of bench/gpu.sh side by side: what each card was found to do.

python -m report gpu reports/gpu-20260101-120000.json L40S=reports/other.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from files import read_json

FORMAT = 1
Row = dict[str, Any]
KEYS = {"part", "row", "verdict", "value", "unit", "target", "note"}
VERDICTS = ("PASS", "FAIL", "SKIPPED", None)


def read(path: Path) -> dict[str, Any]:
    """A run. Raises UserError where the file is none."""
    run = read_json(path)
    if run is None:
        raise UserError(f"{path}: no such file")
    rows, machine = run.get("rows"), run.get("machine")
    if run.get("format") != FORMAT or not isinstance(rows, list) or not isinstance(machine, dict):
        raise UserError(f"{path} is no file of bench/gpu.sh, or of another version of it")
    for each in rows:
        if not isinstance(each, dict) or each.keys() != KEYS or each["verdict"] not in VERDICTS:
            raise UserError(f"{path} is damaged: {str(each)[:80]} is no row of bench/gpu.sh")
    return run


def number(value: Any) -> str:
    """As people read it: three digits that count, whole where it is large."""
    if not isinstance(value, int | float):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cell(row: Row | None) -> str:
    """What a run says in a row: the verdict, its figure, and the note on a figure or on what is not PASS."""
    if row is None:
        return "not tried"
    figure = f"{number(row['value'])} {row['unit']}".strip() if row["unit"] or row["verdict"] is None else ""
    words = [word for word in (row["verdict"], figure) if word]
    if row["note"] and (figure or row["verdict"] in ("FAIL", "SKIPPED")):
        words.append(row["note"])
    return ", ".join(words).replace("|", "/")


def title(run: dict[str, Any], name: str) -> str:
    machine = run["machine"]
    return f"{name}: {machine.get('name')}, torch {machine.get('torch')}".replace("|", "/")


def counted(rows: Sequence[Row]) -> str:
    """How many rows have which verdict."""
    counts = Counter(row["verdict"] or "figures" for row in rows)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "nothing"


def table(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Markdown: a row for each (part, row) of any run, in the order in which they first come."""
    of_run = [{(row["part"], row["row"]): row for row in run["rows"]} for run in runs]
    places = dict.fromkeys(place for rows in of_run for place in rows)
    titles = [title(run, name) for run, name in zip(runs, names, strict=True)]
    lines = [f"| part | row | target | {' | '.join(titles)} |", "|" + "---|" * (3 + len(runs))]
    for part, row in places:
        cells = [cell(rows.get((part, row))) for rows in of_run]
        target = next(rows[part, row]["target"] for rows in of_run if (part, row) in rows)
        lines.append(f"| {part} | {row} | {target} | {' | '.join(cells)} |")
    lines += ["", *(f"{name}: {counted(run['rows'])}" for run, name in zip(runs, names, strict=True))]
    return lines


def compare(paths: Sequence[Path], labels: dict[Path, str]) -> list[str]:
    """Raises UserError for a file that is no run."""
    return table([read(path) for path in paths], [labels.get(path, path.name) for path in paths])
