"""The folder of an experiment: status.json, segments.jsonl, metrics.jsonl, summary.json, as users and jobs read them.

Only the main process writes. Every file is replaced as a whole or appended to by whole lines, so that a kill at any
moment leaves something that can be read.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from errors import UserError
from files import PASSING_FAULTS, write_atomically, write_json
from optim.lock import Lock, job_name, restart_count

SUMMARY = "summary.json"
STATUS = "status.json"
FINAL = "ckpt.pt"
NUMBERED = re.compile(r"ckpt_(\d+)\.pt")
UNKNOWN = "unknown"
SCORES = ("val_loss", "val_pp", "val_acc")
ROW_KEYS = {"train": ("loss",), "eval": SCORES, "final": (*SCORES, "average_depth", "n_tokens")}  # that a summary is made of
LARGEST_ROWS_BYTES = 1 << 29  # of a file of rows: more than a million of them
ABANDONED_SECONDS = 3600.0  # age of a temporary file that a killed job must have left


def step_of(path: Path) -> int | None:
    """N of `ckpt_N.pt`, None for any other name."""
    match = NUMBERED.fullmatch(path.name)
    return int(match.group(1)) if match else None


def numbered(folder: Path) -> list[Path]:
    """The folder's `ckpt_N.pt`, newest first."""
    found = [path for path in folder.iterdir() if step_of(path) is not None] if folder.is_dir() else []
    return sorted(found, key=lambda path: step_of(path) or 0, reverse=True)


def passing(folder: Path) -> list[Path]:
    """The numbered checkpoints, newest first, but for those that were final before an extension (`summary_N.json`)."""
    return [path for path in numbered(folder) if not (folder / f"summary_{step_of(path)}.json").exists()]


def refuse_large(path: Path) -> None:
    """Raises UserError for a file that no training of ours has written."""
    size = path.stat().st_size
    if size > LARGEST_ROWS_BYTES:
        raise UserError(f"{path} has {size:,} bytes, more than any training writes; move it away")


class Metrics:
    """metrics.jsonl: rows are appended, never rewritten; steps that are replayed after a kill are not written twice.

    Rows are {"kind": "train" | "eval" | "final", "step": N, ...}; what depends on the clock is under "time".
    """

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, set[tuple[str, int, int]]()
        self.extension = 0  # how often the run has been extended: a step trained again under another rate is another row
        if not path.exists():
            return
        refuse_large(path)
        raw = path.read_bytes()
        whole = raw[:raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):  # a line that a kill cut short
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                self.seen.add((row["kind"], row["step"], row.get("extension", 0)))
                if not isinstance(row["step"], int) or not row.keys() >= set(ROW_KEYS.get(row["kind"], ())):
                    raise KeyError
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"{path} holds a line that is no metrics row: {line[:80].decode(errors='replace')!r}; move it away") from None

    def has(self, kind: str, step: int) -> bool:
        return (kind, step, self.extension) in self.seen

    def rows(self) -> list[dict[str, Any]]:
        """The newest row of each kind and step, in order of step."""
        newest = {(row["kind"], row["step"]): row for row in map(json.loads, self.path.read_bytes().splitlines())}
        return sorted(newest.values(), key=lambda row: row["step"])

    def append(self, row: dict[str, Any]) -> bool:
        """Write a row and return True, or return False where its step has one already."""
        if self.has(row["kind"], row["step"]):
            return False
        with open(self.path, "ab") as file:
            file.write(json.dumps(row | ({"extension": self.extension} if self.extension else {})).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.seen.add((row["kind"], row["step"], self.extension))
        return True


def read_segments(folder: Path) -> list[dict[str, Any]]:
    """Rows of the ledger, none where there is no ledger. Raises UserError for a damaged one."""
    path = folder / "segments.jsonl"
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


class Experiment:
    """One segment's view of the folder. Raises UserError where it cannot be written."""

    def __init__(self, folder: Path, iterations: int) -> None:
        self.folder, self.iterations = folder, iterations
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".write_test.{os.getpid()}.tmp"
            probe.touch()
            probe.unlink()
            for leftover in folder.glob(".*.tmp"):
                with suppress(FileNotFoundError):  # its writer has just renamed it
                    if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
                        leftover.unlink()
        except OSError as error:
            if error.errno in PASSING_FAULTS:
                raise
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None
        self.lock = Lock(folder / "lock")
        self.began = time.time()
        try:
            self.metrics = Metrics(folder / "metrics.jsonl")
            self.segments = read_segments(folder)
        except BaseException:
            self.close()
            raise

    def begin_segment(self, step: int, saved_step: int | None = None) -> None:
        """Open this job's row, with a reason that stays if the job is killed, and set the status to running.

        saved_step: that of the newest checkpoint in this folder, where it is not `step`.
        """
        self.segments.append({"segment": len(self.segments), "job_id": job_name(), "restart": restart_count(), "start_step": step,
                              "end_step": step, "reached": step, "reason": UNKNOWN, "seconds": 0.0, "started": self.began})
        self.record("running", step, step if saved_step is None else saved_step)

    def record(self, state: str, step: int, saved_step: int, reason: str = UNKNOWN, **more: Any) -> None:
        """Write this job's row and the status: running, stopped, finished or failed.

        step: where the training is; saved_step: that of the newest checkpoint, which is how far this job has brought the
        experiment. Writes nothing where another process has taken the experiment over.
        """
        if self.lock.lost:
            return
        now = time.time()
        self.segments[-1] |= {"end_step": saved_step, "reached": step, "state": state, "reason": reason,
                              "seconds": round(now - self.began, 3)}
        self.write_segments()
        write_json(self.folder / STATUS, {
            "state": state, "itr": step, "iterations": self.iterations, "reason": "" if state == "running" else reason,
            "updated": now, "checkpoint": saved_step, "segments": len(self.segments), "job_id": job_name(), **more})

    def write_segments(self) -> None:
        write_atomically(self.folder / "segments.jsonl", "".join(json.dumps(row) + "\n" for row in self.segments))

    def close(self) -> None:
        """Give the experiment up to others."""
        self.lock.release()

    def remove_numbered(self) -> None:
        for path in passing(self.folder):
            path.unlink(missing_ok=True)
