"""What the folder of an experiment says: the only place that reads status.json, segments.jsonl and
summary.json to decide something.

    record = Record(folder)                     # raises UserError for a damaged file
    record = Record(folder, problems=[])        # notes damage there, and goes on without the file
    record.finished(40000), record.saved_step, record.steps_per_hour(), record.outcome

    python -m optim.reader FOLDER               # the same in lines NAME=VALUE, for shell

It only reads, and needs no torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from errors import UserError
from files import read_json
from optim.evaluations import AT_END, DURING, Best, Row, as_float, split_name
from optim.names import BEST, FINAL, SEGMENTS, STATUS, SUMMARY, numbered, step_of
from optim.outcome import OUTCOME, Outcome, read_outcome
from optim.peek import peek, step_in

try:
    from orjson import loads as parse
except ImportError:  # the status board needs nothing that is not in Python
    from json import loads as parse  # type: ignore[assignment]

LARGEST_ROWS_BYTES = 1 << 29  # of a file of rows that is read whole: more than a million of them
LARGEST_LOG = 1 << 26  # bytes of a file of rows that are read at most where damage is tolerated
# bytes of a file of rows that are read, until they hold what is searched
TAILS = (1 << 13, 1 << 16, 1 << 19, 1 << 22)
MARKS = (f'"{DURING}'.encode(), f'"{AT_END}'.encode())


# reading files


def refuse_large(path: Path) -> None:
    """Raises UserError for a file that no training of ours has written."""
    size = path.stat().st_size
    if size > LARGEST_ROWS_BYTES:
        raise UserError(f"{path} has {size:,} bytes, more than any training writes; move it away")


def read_segments(folder: Path) -> list[Row]:
    """Rows of segments.jsonl, none where there is no such file. Raises UserError for a damaged one."""
    path = folder / SEGMENTS
    try:
        refuse_large(path)
        rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        raise UserError(f"{path} holds a line that is not JSON; move the file away") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds a line that is no JSON object; move the file away")
    return rows


def tail_of(path: Path, size: int) -> bytes:
    """The last whole lines in at most `size` bytes."""
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(start)
        raw = file.read()
    return raw[raw.find(b"\n") + 1 :] if start else raw


def read_rows(path: Path, problems: list[str], size: int | None = None) -> list[Row]:
    """JSON objects, one a line, from at most the last `size` bytes; problems of the file are added to
    `problems`.

    A last line without its end is still being written, or was cut short by a kill.
    """
    try:
        if size is None and os.path.getsize(path) > LARGEST_LOG:
            problems.append(f"{path.name}: only its last {LARGEST_LOG >> 20} MiB are read")
        raw = tail_of(path, size or LARGEST_LOG)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            problems.append(f"{path.name}: {error.strerror}")
        return []
    if raw.endswith(b"\n") and (whole := _rows_at_once(raw)) is not None:
        return whole
    *lines, last = raw.split(b"\n")
    rows, damaged = [], 0
    for line in filter(None, (*lines, last)):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += line is not last
    if damaged:
        problems.append(f"{path.name}: {damaged} of {len(lines)} lines are no JSON objects")
    return rows


def _rows_at_once(raw: bytes) -> list[Row] | None:
    """The objects on these lines, several times as fast as line by line; None where a line is none."""
    try:
        rows = parse(b"[" + raw[:-1].replace(b"\n", b",") + b"]")
    except (ValueError, RecursionError):
        return None
    return rows if len(rows) == raw.count(b"\n") and {*map(type, rows)} <= {dict} else None


def newest_rows(path: Path, problems: list[str], is_over: bool = False) -> tuple[Row, dict[str, Row]]:
    """The last row of a training step, and that of each evaluation by its name; empty where the end of the
    file has none. Problems of that end are added to `problems`. is_over: nothing will be added any more.

    Reads only as much, and parses only such lines, as it takes to find them.
    """
    train: Row = {}
    evaluated: dict[str, Row] = {}
    lines: list[bytes] = []
    damaged: set[bytes] = set()
    for size in TAILS:
        try:
            *lines, last = tail_of(path, size).split(b"\n")
            is_whole = os.path.getsize(path) <= size
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                problems.append(f"{path.name}: {error.strerror}")
            return train, evaluated
        damaged = {
            line for line in lines if line and not (line.startswith(b"{") and line.rstrip().endswith(b"}"))
        }
        train = _last_step([*lines, last], damaged)
        evaluated, are_all = _last_evaluations([*lines, last], is_over, damaged)
        damaged.discard(last)  # still being written, or a kill cut it short
        if is_whole or (train and are_all):
            break
    if damaged:
        problems.append(
            f"{path.name}: {sum(line in damaged for line in lines)} of {len(lines)} lines are no JSON objects"
        )
    return train, evaluated


def _parsed(line: bytes, damaged: set[bytes]) -> Row:
    """The row on a line; empty for one that is no row, which is added to `damaged`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        return row
    damaged.add(line)
    return {}


def _last_step(lines: Sequence[bytes], damaged: set[bytes]) -> Row:
    """The last row of a training step; lines that look like one and are none are added to `damaged`."""
    for line in reversed(lines):
        if b'"train"' in line:
            row = _parsed(line, damaged)
            if row.get("kind") == "train":
                return row
    return {}


def _last_evaluations(
    lines: Sequence[bytes], is_over: bool, damaged: set[bytes]
) -> tuple[dict[str, Row], bool]:
    """The last row of each evaluation, in their order, and whether the lines go far enough back for that.

    Evaluations of a step stand one after the other. Those at the very end may be followed by more, unless the
    training is over: the ones before them tell which.
    """
    rows: list[Row] = []
    steps: list[Any] = []
    is_followed, is_within, runs = is_over, False, 0
    for number, line in enumerate(reversed(lines)):
        row = _parsed(line, damaged) if MARKS[0] in line or MARKS[1] in line else {}
        if row and split_name(row.get("kind"))[0] in (DURING, AT_END):
            if row.get("step") not in steps:
                steps.append(row.get("step"))
            if len(steps) > 2:
                break
            rows.append(row)
            is_within = True
        elif is_within:
            is_within, runs = False, runs + 1
            if is_followed or runs == 2:
                break
        elif number and not rows:  # the first one may be cut short
            is_followed = True
    are_all = len(steps) > 2 or runs == 2 or (runs == 1 and is_followed)
    return {split_name(row["kind"])[1]: row for row in reversed(rows)}, are_all


def advanced(row: Row) -> bool:
    """Whether a job (a row of segments.jsonl) has advanced the newest checkpoint, or an evaluation that takes
    longer than a job.
    """
    start, end = as_float(row.get("start_step")), as_float(row.get("end_step"))
    return row.get("evaluated") is True or (start is not None and end is not None and end > start)


class Record:
    """An experiment's files, each read when it is first asked for."""

    def __init__(self, folder: Path, problems: list[str] | None = None) -> None:
        self.folder, self.problems = folder, problems

    def object(self, name: str) -> Row | None:
        """What a JSON file of the folder holds, None where there is none."""
        try:
            return read_json(self.folder / name)
        except UserError as error:
            if self.problems is None:
                raise
            self.problems.append(f"{name}: {str(error).replace(f'{self.folder / name} ', '')}")
            return None

    @cached_property
    def status(self) -> Row:
        """Empty where there is none."""
        return self.object(STATUS) or {}

    @cached_property
    def summary(self) -> Row | None:
        """Long: it holds all curves."""
        return self.object(SUMMARY)

    @cached_property
    def segments(self) -> list[Row]:
        if self.problems is None:
            return read_segments(self.folder)
        return read_rows(self.folder / SEGMENTS, self.problems)

    @cached_property
    def outcome(self) -> Outcome | None:
        """How the last run ended; None while one goes on, and after one that was killed outright."""
        return read_outcome(self.folder / OUTCOME)

    @cached_property
    def ending(self) -> Outcome | None:
        """How the last run ended if it wrote no status at its end: the outcome, unless it is older than the
        status.
        """
        with suppress(OSError):
            if (self.folder / OUTCOME).stat().st_mtime_ns >= (self.folder / STATUS).stat().st_mtime_ns:
                return self.outcome
        return None

    def summary_of(self, checkpoint: str) -> Row | None:
        """The summary of a checkpoint file: of `ckpt_N.pt` that of its step, if it was final before an
        extension.
        """
        step = step_of(Path(checkpoint))
        own = None if step is None else self.object(f"summary_{step}.json")
        return self.summary if own is None else own

    # answers

    def _recorded(self, key: str) -> Row | None:
        """What the newest checkpoint that has an object under a key has there, else the summary."""
        for path in (self.folder / FINAL, *numbered(self.folder)):
            found = (peek(path) or {}).get(key)
            if isinstance(found, dict):
                return found
        found = (self.summary or {}).get(key)
        return found if isinstance(found, dict) else None

    @cached_property
    def flags(self) -> Row | None:
        """Flags of the training, by name: those that its newest checkpoint records, else its summary; None
        where neither does.
        """
        return self._recorded("args")

    @cached_property
    def frozen(self) -> dict[str, dict[str, str]]:
        """Files of what the training holds and does not train, by name: optim.initial.describe of each."""
        return self._recorded("frozen") or {}

    @cached_property
    def mixture(self) -> dict[str, float]:
        """Shares of the sources that the training reads, by name; empty where it reads one, or it is not
        known. Opens a checkpoint.
        """
        mixture = (self._recorded("data") or {}).get("mixture")
        weights = mixture.get("weights") if isinstance(mixture, dict) else None
        shares = weights.items() if isinstance(weights, dict) else ()
        return {str(name): share for name, share in shares if as_float(share) is not None}

    @cached_property
    def best(self) -> Best | None:
        """What best.pt is the best by; None where there is none, or it does not say."""
        found = (peek(self.folder / BEST) or {}).get("best")
        if not isinstance(found, dict) or not isinstance(found.get("quantity"), str):
            return None
        quantity, evaluation = split_name(found["quantity"])
        value, step = as_float(found.get("value")), as_float(found.get("step"))
        return None if value is None or step is None else Best(quantity, evaluation, value, int(step))

    @property
    def done_iterations(self) -> int | None:
        """For how many steps the finished training was planned; None where it is not finished."""
        if self.summary is None:
            return None
        args = self.summary.get("args")
        planned = args.get("iterations") if isinstance(args, dict) else None
        return planned if isinstance(planned, int) and not isinstance(planned, bool) else None

    def finished(self, iterations: int | None = None) -> bool:
        """Whether all steps (that are asked for) are done."""
        done = self.done_iterations
        return done is not None and (iterations is None or done >= iterations)

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint: in the folder, or when a run last wrote its status; 0: none."""
        steps = [step_of(path) or 0 for path in numbered(self.folder)]
        final = self.folder / FINAL
        if final.is_file():
            steps.append(step_in(final) or 0)
        last = self.segments[-1] if self.segments else {}
        recorded = (as_float(self.status.get("checkpoint")), as_float(last.get("end_step")))
        return max(*steps, *(int(step or 0) for step in recorded), 0)

    @property
    def iterations(self) -> int | None:
        """Steps that are planned, as far as a run has recorded them."""
        planned = as_float(self.status.get("iterations")) or as_float(self.done_iterations)
        return int(planned) if planned else None

    def steps_per_hour(self) -> float | None:
        """Over the jobs that advanced, including start, evaluations and saves.

        Steps lost by a kill do not count.
        """
        steps = seconds = 0.0
        for row in self.segments:
            start, end, reached, took = (
                as_float(row.get(key)) for key in ("start_step", "end_step", "reached", "seconds")
            )
            # its steps since the last checkpoint are not lost yet
            if row is self.segments[-1] and self.status.get("state") == "running":
                end = max(end or 0, reached or 0)
            if start is not None and end is not None and took is not None and end > start and took > 0:
                steps, seconds = steps + end - start, seconds + took
        return as_float(3600 * steps / seconds) if seconds else None

    @property
    def slowest(self) -> tuple[float, float] | None:
        """Seconds of the slowest step and of the slowest save of the last run; None if not timed."""
        step, save = (as_float(self.status.get(f"slowest_{what}_seconds")) for what in ("step", "save"))
        return (step, save) if step and save and step > 0 and save > 0 else None

    @property
    def finished_at(self) -> int | None:
        """When the training finished, in nanoseconds since 1970; None where it has not."""
        return (self.folder / SUMMARY).stat().st_mtime_ns if self.finished() else None


def printed(values: dict[str, object]) -> str:
    """Lines NAME=VALUE, as iridis/lib.sh reads them: by name, never by position.

    Raises UserError where a value has more than one line.
    """
    lines = []
    for name, value in values.items():
        text = "" if value is None else str(value)
        if "\n" in text:
            raise UserError(f"{name} holds a line break: {value!r}")
        lines.append(f"{name}={text}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        raise UserError("one folder, please: python -m optim.reader FOLDER")
    folder = Path(argv[0])
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    record = Record(folder)
    answers: dict[str, object] = {
        "FINISHED": int(record.finished()),
        "FINISHED_AT": record.finished_at,
        "SAVED_STEP": record.saved_step,
        "ITERATIONS": record.iterations,
        "KIND": None,
        "REASON": None,
    }
    outcome = record.outcome
    if outcome:
        answers |= {"KIND": outcome.kind, "REASON": outcome.reason.replace("\n", "; ")}
    print(printed(answers))
    return 0


if __name__ == "__main__":
    import config

    sys.exit(config.guarded("optim.reader", lambda: main(sys.argv[1:])))
