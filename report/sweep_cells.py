"""What the cells of a sweep have come to, from their experiment folders alone.

quantity = quantity_of(sweep)                       # raises UserError
results = [result_of(cell, quantity) for cell in sweep.cells]
"""

from __future__ import annotations

import math
import os
import statistics
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from config.mixture import names_of_sources
from config.places import RESULTS, places
from config.sweep import Cell, Sweep, read_sweep
from errors import UserError
from optim.evaluations import Row, as_float, by_kind, evaluations, final_rows
from optim.names import METRICS, SUMMARY
from optim.reader import MARKS, Record, parse
from optim.tracked import Tracked, evaluations_of, main_quantity
from recipes.coalescence import QUANTITIES

FINISHED, REFUSED, NOT_BEGUN, SHORT = "finished", "refused", "not begun", "too short"


@dataclass(frozen=True)
class Quantity:
    """By which cells are compared. name: QUANTITY or QUANTITY@EVALUATION. sign: 1 where lower is better."""

    name: str
    quantity: str
    evaluation: str
    sign: int

    def best(self, values: Iterable[float]) -> float | None:
        return min(values, key=lambda value: self.sign * value, default=None)

    @property
    def better(self) -> str:
        return "lower" if self.sign > 0 else "higher"


def sweep_of(path: Path, results: Path | None) -> Sweep:
    """The sweep of a file, with its results where jobs write them, or below a folder. Raises UserError."""
    if results is None:
        return read_sweep(path, places())
    if not results.is_dir():
        raise UserError(f"{results}: no such folder")
    sweep = read_sweep(path, {**places(), RESULTS: str(results)})
    if sweep.cells[0].flags[RESULTS] != str(results):
        raise UserError(f"{path} names its own {RESULTS}: {results} would have no effect")
    return sweep


def quantity_of(sweep: Sweep) -> Quantity:
    """What the file names in "track", else what its cells track, else the recipe's main quantity.

    Raises UserError where nothing measures it.
    """
    args = next(found for cell in sweep.cells if (found := cell.resolved().args) is not None)
    known = _known(args)
    wanted = sweep.track or args.track
    if wanted is None:
        sources = names_of_sources(args.dataset) if "objective" in args else []
        wanted = main_quantity(args.objective) if "objective" in args else next(iter(QUANTITIES))
        if sources:
            wanted = f"{wanted}@{sources[0]}"
    try:
        tracked = Tracked(wanted, known, 1)
    except UserError as error:
        raise UserError(f"{sweep.path}: {str(error).removeprefix('--')}") from None
    return Quantity(tracked.wanted, tracked.quantity, tracked.evaluation, tracked.sign)


def _known(args: Namespace) -> Mapping[str, Mapping[str, str]]:
    if "objective" not in args:  # of no text
        return {"": QUANTITIES}
    return evaluations_of(args.dataset, args.objective, args.pass_k)


@dataclass(frozen=True)
class Result:
    """during: values of the evaluations during training, by step. final: the value at the end. hours: of all
    its runs, times their processes. reason: why it is not finished.
    """

    cell: Cell
    state: str
    step: int | None = None
    iterations: int | None = None
    during: dict[int, float] = field(default_factory=dict)
    final: float | None = None
    hours: float = 0.0
    reason: str = ""
    problems: Sequence[str] = ()

    @property
    def is_finished(self) -> bool:
        return self.state == FINISHED

    @property
    def end(self) -> float | None:
        """The value at the end of a finished cell: of the whole split, where that was measured."""
        if not self.is_finished:
            return None
        return self.final if self.final is not None else next(reversed(self.during.values()), None)


def best_of(result: Result, quantity: Quantity) -> tuple[int | None, float | None]:
    """Step and value of the best evaluation during training; that at the end where there was none."""
    value = quantity.best(result.during.values())
    if value is None:
        return (result.step, result.final) if result.final is not None else (None, None)
    return next(step for step, found in result.during.items() if found == value), value


def result_of(cell: Cell, quantity: Quantity) -> Result:
    found = cell.resolved()
    if found.args is None or found.folder is None:
        return Result(cell, REFUSED, reason="; ".join(found.problems))
    asked, folder = found.args.iterations, found.folder
    problems: list[str] = []
    if not os.path.isdir(folder):
        return Result(cell, NOT_BEGUN, iterations=asked)
    record = Record(folder, problems)
    during, final = _values(record, quantity, problems)
    state, reason = _state(record, asked)
    step = as_float((record.status or record.summary or {}).get("itr"))
    return Result(
        cell,
        state,
        None if step is None else int(step),
        asked,
        during,
        final,
        hours_of(record.segments),
        reason,
        problems,
    )


def _state(record: Record, asked: int) -> tuple[str, str]:
    """State and the reason for it. A run that was killed outright is still called running."""
    status, summary = record.status, record.folder / SUMMARY
    is_told = status.get("state") == FINISHED and (as_float(status.get("iterations")) or 0) >= asked
    if (is_told and summary.is_file()) or record.finished(asked):  # the summary is long
        return FINISHED, ""
    if record.finished():
        return SHORT, f"finished with {record.done_iterations} steps, the file asks for {asked}"
    outcome = record.ending if record.status else record.outcome
    if outcome is not None:
        return outcome.state, outcome.reason
    if not record.status and not record.segments:
        return NOT_BEGUN, ""
    return str(record.status.get("state", "unknown")), str(record.status.get("reason") or "")


def _values(record: Record, quantity: Quantity, problems: list[str]) -> tuple[dict[int, float], float | None]:
    """Of the evaluations during training by step, and of the last one at the end."""
    rows = evaluation_rows(record.folder / METRICS, problems)
    found = evaluations(by_kind(rows)).get(quantity.evaluation)
    key = quantity.quantity
    if found is None:
        last = final_rows(record.summary or {}).get(quantity.evaluation, {})
        return {}, as_float(last.get(key))
    finals = [row[key] for row in found.by_step(key, at_end=True).values()]
    return {step: row[key] for step, row in found.by_step(key).items()}, finals[-1] if finals else None


def evaluation_rows(path: Path, problems: list[str]) -> list[Row]:
    """Rows of evaluations in metrics.jsonl. Most lines are of training steps, and are not looked at."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            problems.append(f"{path.name}: {error.strerror}")
        return []
    rows, damaged = [], 0
    for line in _lines_with_marks(raw):
        try:
            row = parse(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    if damaged:
        problems.append(f"{path.name}: {damaged} lines of evaluations are no JSON objects")
    return rows


def _lines_with_marks(raw: bytes) -> list[bytes]:
    """Whole lines in which an evaluation may stand, in their order; a last one without an end is still being
    written.
    """
    found: dict[int, bytes] = {}
    for mark in MARKS:
        place = raw.find(mark)
        while place >= 0:
            start, end = raw.rfind(b"\n", 0, place) + 1, raw.find(b"\n", place)
            if end < 0:
                break
            found[start] = raw[start:end]
            place = raw.find(mark, end)
    return [line for _, line in sorted(found.items())]


def hours_of(segments: Sequence[Row]) -> float:
    """Of all runs, each times its processes, of which each has a GPU where there are GPUs."""
    seconds = 0.0
    for row in segments:
        seconds += (as_float(row.get("seconds")) or 0.0) * (as_float(row.get("world_size")) or 1)
    return seconds / 3600


@dataclass(frozen=True)
class Mean:
    """Over seeds. sem: None of a single one."""

    n: int
    mean: float
    sem: float | None

    def __str__(self) -> str:
        return as_number(self.mean) if self.sem is None else f"{as_number(self.mean)} ± {self.sem:.2g}"


def mean_of(values: Sequence[float]) -> Mean | None:
    if not values:
        return None
    sem = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(len(values), statistics.fmean(values), sem)


@dataclass(frozen=True)
class Setting:
    """Cells that differ in their seed alone."""

    results: list[Result]
    quantity: Quantity

    @property
    def label(self) -> str:
        return self.results[0].cell.label

    @property
    def place(self) -> dict[str, Any]:
        """Its values along the sweep's dimensions."""
        return self.results[0].cell.place

    @property
    def n_finished(self) -> int:
        return sum(result.is_finished for result in self.results)

    @cached_property
    def end(self) -> Mean | None:
        """Of the finished cells."""
        return mean_of([result.end for result in self.results if result.end is not None])

    @cached_property
    def best(self) -> Mean | None:
        """Of the best values of the finished cells; where there are none, of those so far of the others."""
        finished = [result for result in self.results if result.is_finished]
        found = [best_of(result, self.quantity)[1] for result in finished or self.results]
        return mean_of([value for value in found if value is not None])

    @cached_property
    def curve(self) -> dict[int, list[float]]:
        """Values of the seeds by step: of the finished cells where there are any, else of those that have
        been evaluated; at steps that all of them have.
        """
        finished = [result.during for result in self.results if result.is_finished and result.during]
        courses = finished or [result.during for result in self.results if result.during]
        if not courses:
            return {}
        steps = sorted(set(courses[0]).intersection(*courses[1:]))
        return {step: [course[step] for course in courses] for step in steps}


def settings_of(sweep: Sweep, results: Sequence[Result], quantity: Quantity) -> list[Setting]:
    of = {result.cell.number: result for result in results}
    return [Setting([of[cell.number] for cell in cells], quantity) for cells in sweep.settings]


def ranked(settings: Sequence[Setting]) -> list[Setting]:
    """Those with a finished cell, best first, by the mean at the end."""
    known = [setting for setting in settings if setting.end is not None]
    return sorted(known, key=lambda setting: setting.quantity.sign * (setting.end.mean if setting.end else 0))


def as_number(value: float) -> str:
    return f"{value:.4f}" if 1e-2 <= abs(value) < 1e4 else f"{value:.4g}"
