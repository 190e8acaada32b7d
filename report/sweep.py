"""A sweep as a table, pictures and JSON: one line for each setting, mean and SEM over its seeds.

python -m report sweep rates.json --output reports
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.sweep import Sweep, refusals
from files import write_atomically, write_json
from report.sweep_cells import (
    REFUSED,
    Mean,
    Quantity,
    Result,
    Setting,
    best_of,
    quantity_of,
    ranked,
    result_of,
    settings_of,
    sweep_of,
)

MOST_NAMED = 50  # cells that are not finished, in the Markdown; the JSON has them all
READING = """\
*At the end* is the mean over the finished cells of a setting of the last evaluation, which reads the whole
split where the training does so; *best* is the mean of their best evaluations during training (in brackets:
so far, of cells of which none is finished). ± is the standard error over seeds (one seed has none). *Seeds*
says how many of the setting's cells are finished. Ranks are by the mean at the end; a setting without a
finished cell has none, and a failed seed does not count in its setting's mean. GPU hours are those of all
runs times their processes (on CPUs: hours of processes)."""


@dataclass(frozen=True)
class SweepReport:
    sweep: Sweep
    quantity: Quantity
    results: list[Result]
    settings: list[Setting]

    @property
    def unfinished(self) -> list[Result]:
        return [result for result in self.results if not result.is_finished]

    def rank(self, setting: Setting) -> int | None:
        """From 1; None without a finished cell."""
        order = ranked(self.settings)
        return order.index(setting) + 1 if setting in order else None


def collect(path: Path, results: Path | None) -> SweepReport:
    """Raises UserError."""
    sweep = sweep_of(path, results)
    quantity = quantity_of(sweep)
    found = [result_of(cell, quantity) for cell in sweep.cells]
    return SweepReport(sweep, quantity, found, settings_of(sweep, found, quantity))


# Markdown


def _cells(report: SweepReport, setting: Setting, ranks: dict[int, int]) -> list[str]:
    """What the columns of a setting's line say."""
    rank = ranks.get(id(setting))
    mark = "**" if rank == 1 else ""
    hours = sum(result.hours for result in setting.results)
    return [
        "" if rank is None else f"{mark}{rank}{mark}",
        _plain(setting.label),
        _seeds(setting),
        "" if setting.end is None else f"{mark}{setting.end}{mark}",
        "" if setting.best is None else str(setting.best) if setting.n_finished else f"({setting.best})",
        f"{hours:.2f}",
    ]


def _seeds(setting: Setting) -> str:
    """How many are finished, and what the others are."""
    others = Counter(result.state for result in setting.results if not result.is_finished)
    told = "".join(f", {count} {state}" for state, count in others.items())
    return f"{setting.n_finished} of {len(setting.results)}{told}"


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


def table(report: SweepReport) -> list[str]:
    """Lines of a Markdown table, in the order of the file."""
    ranks = {id(setting): rank for rank, setting in enumerate(ranked(report.settings), start=1)}
    name = report.quantity.name
    header = ["rank", "setting", "seeds", f"{name} at the end", f"best {name}", "GPU hours"]
    lines = [header, ["---:", "---", "---", "---:", "---:", "---:"]]
    lines += [_cells(report, setting, ranks) for setting in report.settings]
    return [f"| {' | '.join(line)} |" for line in lines]


def _not_finished(report: SweepReport) -> Iterator[str]:
    """A line for each cell that is not finished, but for those that are refused for the same reason."""
    yield from (f"- refused: {line}" for line in refusals(report.sweep.cells))
    missing = [result for result in report.unfinished if result.state != REFUSED]
    for result in missing[:MOST_NAMED]:
        cell = result.cell
        done = "" if result.step is None else f" at step {result.step} of {result.iterations}"
        reason = f": {' '.join(result.reason.split())}" if result.reason else ""
        yield f"- cell {cell.number} ({cell.title}): {result.state}{done}{reason}"
    if len(missing) > MOST_NAMED:
        yield f"- and {len(missing) - MOST_NAMED} more (the JSON file has them all)"


def summary(report: SweepReport) -> str:
    states = Counter(result.state for result in report.results)
    told = ", ".join(f"{count} {state}" for state, count in states.most_common())
    hours = sum(result.hours for result in report.results)
    return f"{len(report.results)} cells: {told}; {hours:.2f} GPU hours."


def markdown(report: SweepReport, pictures: Sequence[tuple[str, str]], notes: Sequence[str]) -> str:
    """pictures: file and caption of each."""
    sweep, quantity = report.sweep, report.quantity
    lines = [
        f"# Sweep {sweep.name}",
        "",
        f"Recipe {sweep.recipe}; compared by {quantity.name}, {quantity.better} is better.",
        summary(report),
    ]
    order = ranked(report.settings)
    if order and order[0].end is not None:
        best = f"{_plain(order[0].label)}, {quantity.name} {order[0].end}"
        lines.append(f"Best at the end: {best} ({_seeds(order[0])} seeds).")
    if report.unfinished:
        line = f"**{len(report.unfinished)} of {len(report.results)} cells are not finished**"
        lines += ["", f"{line}; their settings are reported with what there is:", "", *_not_finished(report)]
    lines += ["", *table(report), "", READING]
    problems = [
        f"- cell {result.cell.number} ({result.cell.title}): {problem}"
        for result in report.results
        for problem in result.problems
    ]
    if problems or notes:
        lines += ["", "## Notes", "", *problems, *(f"- {note}" for note in notes)]
    for file, caption in pictures:
        lines += ["", f"![{file.removesuffix('.png')}]({file})", "", caption]
    return "\n".join(lines) + "\n"


# JSON


def _mean(mean: Mean | None) -> dict[str, Any] | None:
    return None if mean is None else {"n": mean.n, "mean": mean.mean, "sem": mean.sem}


def as_json(report: SweepReport, notes: Sequence[str]) -> dict[str, Any]:
    sweep, quantity = report.sweep, report.quantity
    ranks = {id(setting): rank for rank, setting in enumerate(ranked(report.settings), start=1)}
    cells, settings = [], []
    for result in report.results:
        step, value = best_of(result, quantity)
        folder = result.cell.resolved().folder
        cells.append(
            {
                "number": result.cell.number,
                "label": result.cell.label,
                "seed": result.cell.seed,
                "folder": None if folder is None else str(folder),
                "state": result.state,
                "step": result.step,
                "iterations": result.iterations,
                "end": result.end,
                "best": value,
                "best_step": step,
                "gpu_hours": result.hours,
                "reason": result.reason,
                "problems": list(result.problems),
            }
        )
    for setting in report.settings:
        settings.append(
            {
                "label": setting.label,
                "setting": setting.results[0].cell.setting,
                "rank": ranks.get(id(setting)),
                "finished": setting.n_finished,
                "cells": [result.cell.number for result in setting.results],
                "end": _mean(setting.end),
                "best": _mean(setting.best),
            }
        )
    return {
        "name": sweep.name,
        "path": str(sweep.path),
        "recipe": sweep.recipe,
        "track": {"quantity": quantity.name, "better": quantity.better},
        "axes": sweep.axes,
        "settings": settings,
        "cells": cells,
        "notes": list(notes),
    }


def write(path: Path, output: Path, results: Path | None) -> None:
    """The table as Markdown and JSON, the pictures, and the Markdown on the screen. Raises UserError."""
    from report.sweep_figures import draw

    report = collect(path, results)
    stem = f"sweep-{report.sweep.name}"
    output.mkdir(parents=True, exist_ok=True)
    pictures, notes = draw(report.settings, report.sweep, report.quantity, output, stem)
    notes = [*report.sweep.notes, *notes]
    text = markdown(report, pictures, notes)
    write_atomically(output / f"{stem}.md", text)
    write_json(output / f"{stem}.json", as_json(report, notes))
    print(text)
    if report.unfinished:
        line = f"warning: {len(report.unfinished)} of {len(report.results)} cells are not finished"
        print(line, file=sys.stderr)
