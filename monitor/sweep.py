"""How the cells of a sweep stand: a line for each, for two axes a grid as well, and totals.

python status.py --sweep rates.json
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.sweep import Cell, Sweep, as_text, refusals
from monitor.page import GAP, Progress, is_live, notes, shortened, words
from monitor.read import Queue, progress_of, read_queue, unbegun
from report.sweep_cells import (
    FINISHED,
    NOT_BEGUN,
    REFUSED,
    SHORT,
    Quantity,
    Result,
    as_number,
    best_of,
    quantity_of,
    ranked,
    result_of,
    settings_of,
    sweep_of,
)

HEADERS = ("cell", "setting", "seed", "state", "step", "%", "best", "at step", "at the end", "GPU h", "job")
LEFT = ("setting", "state", "job")
LABEL = HEADERS.index("setting")
NARROWEST_LABEL = 24


@dataclass(frozen=True)
class Row:
    """A cell, what its folder has measured, and what its folder and the queue say of its runs: None where it
    was refused, or nothing has been begun.
    """

    result: Result
    progress: Progress | None

    @property
    def state(self) -> str:
        if self.progress is None or self.result.state in (FINISHED, SHORT, REFUSED):
            return self.result.state
        return self.progress.state

    @property
    def job(self) -> str:
        row = self.progress
        return row.job_id or "-" if row is not None and is_live(row) else "-"

    @property
    def notes(self) -> list[str]:
        """Lines about why it is not finished."""
        if self.result.state in (REFUSED, SHORT):
            return [f"{self.result.state}: {self.result.reason}"]
        lines = [] if self.progress is None else notes(self.progress)
        return [*lines, *(f"unreadable: {problem}" for problem in self.result.problems if not lines)]


@dataclass(frozen=True)
class Board:
    """A sweep, its cells in their order, and a line about the queue where it did not answer."""

    sweep: Sweep
    quantity: Quantity
    rows: list[Row]
    note: str

    @property
    def best(self) -> Row | None:
        """The cell with the best value so far."""
        known = [row for row in self.rows if best_of(row.result, self.quantity)[1] is not None]
        value = self.quantity.best(best_of(row.result, self.quantity)[1] or 0.0 for row in known)
        return next((row for row in known if best_of(row.result, self.quantity)[1] == value), None)


def read_board(path: Path, results: Path | None) -> Board:
    """results: the root of the experiments, where it is another than that of jobs. Raises UserError."""
    sweep = sweep_of(path, results)
    quantity, queue, now = quantity_of(sweep), read_queue(), time.time()
    rows = [row_of(cell, quantity, queue, now) for cell in sweep.cells]
    return Board(sweep, quantity, rows, queue.note)


def row_of(cell: Cell, quantity: Quantity, queue: Queue, now: float) -> Row:
    result, folder = result_of(cell, quantity), cell.resolved().folder
    if folder is None:
        return Row(result, None)
    folder = folder.resolve()  # by which jobs are named
    if result.state != NOT_BEGUN:
        return Row(result, progress_of(folder, cell.title, queue, now))
    jobs = queue.jobs_of(folder, "")
    return Row(result, unbegun(queue, jobs, cell.title, folder) if jobs else None)


# text


def line_of(row: Row, quantity: Quantity, best: bool) -> list[str]:
    """What the columns of HEADERS say."""
    result, cell = row.result, row.result.cell
    step, value = best_of(result, quantity)
    progress = row.progress
    done = result.step if progress is None or progress.step is None else progress.step
    return [
        str(cell.number),
        words(cell.label),
        "-" if cell.seed is None else str(cell.seed),
        row.state,
        f"{'-' if done is None else done}/{result.iterations or '?'}",
        "-" if done is None or not result.iterations else f"{min(100 * done // result.iterations, 100)}%",
        "-" if value is None else as_number(value) + "*" * best,
        "-" if step is None else f"{step:,}",
        "-" if result.end is None else as_number(result.end),
        f"{result.hours:.2f}",
        row.job,
    ]


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lines of a table; numbers stand on the right, columns of `left` on the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        places = [
            text.ljust(width) if place in left else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append(GAP.join(places).rstrip())
    return shown


def table(board: Board, columns: int | None) -> list[str]:
    """columns: of the terminal, for which empty columns are left out, and long settings lose their middle;
    None: nothing is left out.
    """
    best = board.best
    lines = [list(HEADERS), *(line_of(row, board.quantity, row is best) for row in board.rows)]
    left = [HEADERS.index(name) for name in LEFT]
    if columns is not None:
        shown = [place for place in range(len(HEADERS)) if any(line[place] != "-" for line in lines[1:])]
        lines = [[line[place] for place in shown] for line in lines]
        left = [shown.index(place) for place in left if place in shown]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        room = columns - sum(widths) - len(GAP) * (len(widths) - 1) + widths[LABEL]
        for line in lines:
            line[LABEL] = shortened(line[LABEL], max(room, NARROWEST_LABEL))
    return aligned(lines, left)


def grid(board: Board, columns: int | None) -> list[str]:
    """For two axes that vary, the mean of each setting over its finished seeds, and how many these are; none
    for another number of axes.
    """
    axes = board.sweep.dimensions
    settings = settings_of(board.sweep, [row.result for row in board.rows], board.quantity)
    if len(axes) != 2:
        return []
    (down, rows), (across, places) = axes.items()
    at = {(repr(each.place[down]), repr(each.place[across])): each for each in settings}
    best = next(iter(ranked(settings)), None)
    lines = [[f"{down} \\ {across}", *map(as_text, places)]]
    for row in rows:
        line = [words(as_text(row))]
        if columns is not None:
            line = [shortened(line[0], columns // 3)]
        for place in places:
            setting = at.get((repr(row), repr(place)))
            if setting is None:
                line.append("")
                continue
            value = "-" if setting.best is None else f"({as_number(setting.best.mean)})"
            if setting.end is not None:
                value = as_number(setting.end.mean)
            line.append(f"{value}{'*' * (setting is best)} {setting.n_finished}/{len(setting.results)}")
        lines.append(line)
    title = (
        f"{board.quantity.name} at the end: mean of the seeds that are finished (in brackets: best so far)"
    )
    return ["", title, *aligned(lines, [0])]


def totals(board: Board) -> dict[str, Any]:
    """Of all cells; steps: done and asked for, of those that are not refused."""
    states = Counter(row.state for row in board.rows)
    done = asked = 0
    for row in board.rows:
        if row.state != REFUSED and row.result.iterations:
            step = row.progress.step if row.progress is not None else row.result.step
            done, asked = done + min(step or 0, row.result.iterations), asked + row.result.iterations
    return {
        "cells": len(board.rows),
        "states": dict(states.most_common()),
        "steps_done": done,
        "steps_asked": asked,
        "gpu_hours": sum(row.result.hours for row in board.rows),
    }


def summary(board: Board) -> str:
    found = totals(board)
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items())
    share = 100 * found["steps_done"] // found["steps_asked"] if found["steps_asked"] else 0
    parts = [
        f"{found['cells']} cells: {states}",
        f"{share}% of all steps",
        f"{found['gpu_hours']:.2f} GPU hours",
    ]
    if board.best is not None:
        value = best_of(board.best.result, board.quantity)[1] or 0.0
        parts.append(f"best {board.quantity.name} {as_number(value)}: cell {board.best.result.cell.number}")
    return "; ".join(parts)


def report(path: Path, results: Path | None, columns: int | None) -> list[str]:
    board = read_board(path, results)
    sweep = board.sweep
    by = f"by {board.quantity.name} ({board.quantity.better} is better)"
    head = f"{words(sweep.name)}: recipe {sweep.recipe}, {by}"
    remarks = [f"refused: {line}" for line in refusals(sweep.cells)]
    for row in board.rows:
        if row.state == REFUSED:
            continue
        title = f"cell {row.result.cell.number} ({words(row.result.cell.title)})"
        remarks += [f"{title}: {line}" for line in row.notes]
    remarks += [*sweep.notes, *([board.note] if board.note else [])]
    return [
        head,
        "",
        *table(board, columns),
        *grid(board, columns),
        "",
        summary(board),
        *([""] if remarks else []),
        *remarks,
    ]


def as_json(board: Board) -> dict[str, Any]:
    """For scripts; null is what is not known."""
    cells = []
    for row in board.rows:
        result, cell, progress = row.result, row.result.cell, row.progress
        step, value = best_of(result, board.quantity)
        cells.append(
            {
                "number": cell.number,
                "label": cell.label,
                "seed": cell.seed,
                "setting": cell.setting,
                "folder": None if result.state == REFUSED else str(cell.resolved().folder),
                "state": row.state,
                "step": result.step if progress is None else progress.step,
                "iterations": result.iterations,
                "best": value,
                "best_step": step,
                "end": result.end,
                "gpu_hours": result.hours,
                "job": None if row.job == "-" else row.job,
                "queue": None if progress is None else progress.queue,
                "notes": row.notes,
            }
        )
    return {
        "name": board.sweep.name,
        "path": str(board.sweep.path),
        "recipe": board.sweep.recipe,
        "track": {"quantity": board.quantity.name, "better": board.quantity.better},
        "axes": board.sweep.axes,
        "cells": cells,
        "totals": totals(board),
        "notes": [*board.sweep.notes, *([board.note] if board.note else [])],
    }
