"""The folder of an experiment: status.json, segments.jsonl, metrics.jsonl, summary.json, as users and jobs
read them.

Only the main process writes. Every file is replaced as a whole or appended to by whole lines, so that a kill
at any moment leaves something that can be read.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from errors import UserError
from files import TRANSIENT_ERRORS, json_text, sync, try_to_write, write_atomically, write_json
from optim.lock import Lock, job_name, restart_count
from optim.names import ABANDONED, METRICS, SEGMENTS, STATUS, free_name, intermediate
from optim.reader import read_segments, refuse_large

UNKNOWN = "unknown"
SCORES = ("val_loss", "val_pp", "val_acc")
# that a summary is made of
ROW_KEYS = {"train": ("loss",), "eval": SCORES, "final": (*SCORES, "average_depth", "n_tokens")}
ABANDONED_SECONDS = 3600.0  # age of a temporary file that a killed job must have left


class Metrics:
    """metrics.jsonl: appends a row for each logged step; steps that are replayed after a kill are not written
    twice.

    Rows are {"kind": "train" | "eval" | "final" | "skipped", "step": N, ...}; values that depend on the clock
    are under "time". Beyond the first leg of the schedule a row also has the number of its leg ("extension")
    and a hash of the legs ("legs").
    """

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, set[tuple[str, int]]()
        self.lineage: Lineage | None = None
        if not path.exists():
            return
        refuse_large(path)
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):  # a line that a kill cut short
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                self.seen.add((row["kind"], row["step"]))
                if not isinstance(row["step"], int) or not row.keys() >= set(ROW_KEYS.get(row["kind"], ())):
                    raise KeyError
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f"{path} holds a line that is no metrics row: {line[:80].decode(errors='replace')!r};"
                    " move it away"
                ) from None

    def has(self, kind: str, step: int) -> bool:
        return (kind, step) in self.seen

    def row(self, kind: str, step: int) -> dict[str, Any] | None:
        """The newest row of a kind and a step."""
        if not self.has(kind, step):
            return None
        return next(row for row in reversed(self._read()) if (row["kind"], row["step"]) == (kind, step))

    def rows(self) -> list[dict[str, Any]]:
        """The newest row of each kind and step, in order of step."""
        newest = {(row["kind"], row["step"]): row for row in self._read()}
        return sorted(newest.values(), key=lambda row: row["step"])

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def go_on(self, lineage: Lineage, at_most: int | None = None) -> int:
        """Continue the training under this schedule: set aside the rows of steps that were trained under
        another one.

        at_most: a step to which the training has been rolled back; rows beyond it are set aside too. Returns
        the number of rows that were set aside.
        """
        self.lineage = lineage
        kept: list[dict[str, Any]] = []
        abandoned: list[dict[str, Any]] = []
        for row in self._read():
            is_mine = lineage.holds(row) and (at_most is None or row["step"] <= at_most)
            (kept if is_mine else abandoned).append(row)
        if abandoned:
            write_atomically(free_name(self.path, ABANDONED), _lines(abandoned))
            write_atomically(self.path, _lines(kept))
            self.seen = {(row["kind"], row["step"]) for row in kept}
        return len(abandoned)

    def append(self, row: dict[str, Any]) -> bool:
        """Write a row and return True, or return False where its step has one already."""
        if self.has(row["kind"], row["step"]):
            return False
        marked = row | (self.lineage.mark(row["step"]) if self.lineage else {})
        with open(self.path, "ab") as file:
            file.write(_lines([marked]).encode())
            file.flush()
            sync(file.fileno())
        self.seen.add((row["kind"], row["step"]))
        return True


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json_text(row) + "\n" for row in rows)


class Lineage:
    """Marks of metrics rows that say which schedule a step was trained under.

    begins: for each leg, the step after which it holds; contents: for each leg, the leg and all before it as
    text. A mark depends on what the legs are, not only on their number, so that an abandoned extension
    differs from the one that replaced it.
    """

    def __init__(self, begins: Sequence[int], contents: Sequence[str]) -> None:
        self.begins = begins
        self.hashes = [hashlib.sha256(content.encode()).hexdigest()[:8] for content in contents]

    def mark(self, step: int) -> dict[str, Any]:
        """The marks for the row of a step, which ends the training of step `step - 1`; empty in the first
        leg.
        """
        leg = bisect.bisect_right(self.begins, max(step - 1, 0)) - 1
        return {"extension": leg, "legs": self.hashes[leg]} if leg > 0 else {}

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether a row belongs to this training. Rows from before there were hashes have the count alone."""
        mine = self.mark(row["step"])
        return row.get("extension", 0) == mine.get("extension", 0) and row.get(
            "legs", mine.get("legs")
        ) == mine.get("legs")


class Experiment:
    """One segment's view of the folder. Raises UserError where it cannot be written."""

    def __init__(self, folder: Path, iterations: int) -> None:
        self.folder, self.iterations = folder, iterations
        try:
            try_to_write(folder)
            for leftover in folder.glob(".*.tmp"):
                with suppress(FileNotFoundError):  # its writer has just renamed it
                    if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
                        leftover.unlink()
        except OSError as error:
            if error.errno in TRANSIENT_ERRORS:
                raise
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None
        self.lock = Lock(folder / "lock")
        self.began = time.time()
        try:
            self.metrics = Metrics(folder / METRICS)
            self.segments = read_segments(folder)
        except BaseException:
            self.close()
            raise

    def begin_segment(self, step: int, saved_step: int | None = None, **facts: Any) -> None:
        """Add this job's row, with a reason that remains if the job is killed, and set the status to running.

        saved_step: that of the newest checkpoint in this folder, if it is not `step`. facts: further values
        of the row.
        """
        newest = step if saved_step is None else saved_step
        if self.segments and self.segments[-1]["end_step"] < newest:
            # the job before was killed between its last save and the row about it
            self.segments[-1] |= {"end_step": newest, "reached": max(self.segments[-1]["reached"], newest)}
        self.segments.append(
            {
                "segment": len(self.segments),
                "job_id": job_name(),
                "restart": restart_count(),
                "start_step": step,
                "end_step": step,
                "reached": step,
                "reason": UNKNOWN,
                "seconds": 0.0,
                "started": self.began,
                **facts,
            }
        )
        self.record("running", step, newest)

    def last_row_with(self, fact: str) -> dict[str, Any]:
        """The newest row of a job that has a value, or an empty one."""
        return next((row for row in reversed(self.segments) if fact in row), {})

    def record(self, state: str, step: int, saved_step: int, reason: str = UNKNOWN, **more: Any) -> None:
        """Write this job's row and the status: running, stopped, finished or failed.

        step: where the training is; saved_step: that of the newest checkpoint, which is how far this job has
        advanced the experiment. Writes nothing if another process has taken the experiment over.
        """
        if self.lock.lost:
            return
        now = time.time()
        self.segments[-1] |= {
            "end_step": saved_step,
            "reached": step,
            "state": state,
            "reason": reason,
            "seconds": round(now - self.began, 3),
        }
        self.write_segments()
        write_json(
            self.folder / STATUS,
            {
                "state": state,
                "itr": step,
                "iterations": self.iterations,
                "reason": "" if state == "running" else reason,
                "updated": now,
                "checkpoint": saved_step,
                "segments": len(self.segments),
                "job_id": job_name(),
                **more,
            },
        )

    def note(self, **facts: Any) -> None:
        """Add values to this job's row, unless another process has taken the experiment over."""
        if not self.lock.lost:
            self.segments[-1] |= facts
            self.write_segments()

    def write_segments(self) -> None:
        write_atomically(self.folder / SEGMENTS, _lines(self.segments))

    def close(self) -> None:
        """Release the experiment for others."""
        self.lock.release()

    def remove_numbered(self, kept_steps: Collection[int] = ()) -> None:
        for path in intermediate(self.folder, kept_steps):
            path.unlink(missing_ok=True)
