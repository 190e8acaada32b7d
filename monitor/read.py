"""Where every experiment stands, from its folder and the queue. It only reads, and needs neither torch nor SLURM.

    rows, queue = survey([Path("exps")])
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from monitor.page import Progress, words
from optim.names import METRICS, SEGMENTS, STATUS, SUMMARY
from optim.outcome import OUTCOME
from optim.reader import Record, Row, number, read_rows

SILENT_SECONDS = 600.0  # a run that says "running" and has changed nothing for so long
SQUEUE_SECONDS = 10.0  # patience with the queue
TAILS = (1 << 16, 1 << 19, 1 << 22)  # bytes of metrics.jsonl read for the table, until they hold a training row and an evaluation


@dataclass(frozen=True)
class Job:
    state: str
    reason: str
    start: str


@dataclass(frozen=True)
class Queue:
    """The user's jobs by id, None without SLURM; `note` says why they are not known where it is there."""

    jobs: dict[str, Job] | None
    note: str = ""

    def tell(self, job_id: str) -> tuple[Job | None, str | None]:
        """The job, and the queue's word on it; None for what is no SLURM job but a host and process."""
        if self.jobs is None or not re.fullmatch(r"\d+(_\d+)?", job_id):
            return None, None
        job = self.jobs.get(job_id)
        return job, "?" if self.note else job.state if job else "no job"


def read_queue() -> Queue:
    """The user's jobs, from squeue where there is one."""
    command = ["squeue", "--me", "-h", "-o", "%i|%T|%r|%A|%S|%j"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SQUEUE_SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return Queue(None)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Queue({}, f"squeue did not answer: {error}")
    if answer.returncode:
        return Queue({}, f"squeue failed: {words(answer.stderr) or answer.returncode}")
    jobs = {}
    for line in answer.stdout.splitlines():
        shown, state, reason, plain, start, *_ = [*map(words, line.split("|")), *[""] * 5]
        jobs[shown] = jobs[plain] = Job(state, reason, start)  # of an array: 12_3, and the number that its jobs know
    return Queue(jobs)


# reading a folder


def newest_rows(path: Path, problems: list[str]) -> tuple[Row, Row]:
    """The last training row and the last evaluation, from the end of metrics.jsonl."""
    for size in TAILS:
        found: list[str] = []
        rows = read_rows(path, found, size)[::-1]
        train: Row = next((row for row in rows if row.get("kind") == "train"), {})
        evaluation: Row = next((row for row in rows if row.get("kind") in ("eval", "final")), {})
        with suppress(OSError):
            if (train and evaluation) or os.path.getsize(path) <= size:
                break
    problems += found
    return train, evaluation


def weigh(folder: Path, problems: list[str]) -> tuple[int, float | None]:
    """Bytes of all files, and when the newest checkpoint was written."""
    def refused(error: OSError) -> None:
        if Path(error.filename) == folder and not isinstance(error, FileNotFoundError):
            problems.append(f"folder: {error.strerror}")

    total, saved = 0, None
    for parent, _, names in os.walk(folder, onerror=refused):
        for name in names:
            with suppress(OSError):  # pruned meanwhile
                entry = os.lstat(os.path.join(parent, name))
                total += entry.st_size
                if is_checkpoint(name) and Path(parent) == folder:
                    saved = max(saved or 0.0, entry.st_mtime)
    return total, saved


def updated_at(folder: Path, status: Row, *rows: Row) -> float | None:
    """When the run last wrote. A held lock is renewed every few seconds, also during a long evaluation."""
    clocks = (row.get("time") for row in rows)
    times = [number(status.get("updated")), *(number(clock.get("unix")) for clock in clocks if isinstance(clock, dict))]
    with suppress(OSError):
        lock = (folder / "lock").stat()
        times.append(lock.st_mtime if lock.st_size else None)
    return max((moment for moment in times if moment is not None), default=None)


def state_of(record: Record, summary: Row, problems: list[str], age: float | None, job: Job | None) -> str:
    """The state that the run told, `silent` where it says running and nobody hears of it."""
    if record.status:
        is_silent = age is not None and age > SILENT_SECONDS and (job is None or job.state != "RUNNING")
        told = record.status.get("state", "unknown")
        return "silent" if told == "running" and is_silent else words(told)[:20]
    if summary:
        return "finished"
    if problems:
        return "unreadable"
    return record.outcome.state if record.outcome else "unknown"


def reason_of(record: Record) -> str:
    """Why the last run ended: as it said itself, or, where it did not come as far as a status, as its outcome says."""
    status = record.status
    if status.get("state") == "running" or not record.outcome or record.outcome.is_done:
        return words(status.get("reason") or "")
    return words(record.outcome.reason)


def look(folder: Path, name: str, queue: Queue, now: float) -> Progress:
    """Everything about one experiment that its folder and the queue tell."""
    problems: list[str] = []
    disk_bytes, saved = weigh(folder, problems)
    closed = problems[:]  # of a folder that may not be read the files need no words of their own
    record = Record(folder, problems)
    status = record.status
    summary = {} if status or problems else record.summary or {}
    segments = record.segments
    train, evaluation = newest_rows(folder / METRICS, problems)
    last = segments[-1] if segments else {}
    job_id = words(status.get("job_id") or last.get("job_id") or "")
    job, queued = queue.tell(job_id)
    updated = updated_at(folder, status, train, evaluation)
    age = None if updated is None else max(0.0, now - updated)
    state = state_of(record, summary, problems, age, job)
    total = number(status.get("iterations")) or (number(record.done_iterations) if summary else None)
    steps = (number(row.get(key)) for row, key in ((status, "itr"), (summary, "itr"), (train, "step"), (last, "end_step")))
    step = next((found for found in steps if found is not None), None)
    rate = record.steps_per_hour()
    left = number(max(0.0, total - step) / rate * 3600) if rate and total and step is not None and state != "finished" else None
    return Progress(
        name=words(name), folder=words(folder), state=state, step=None if step is None else int(step), iterations=int(total) if total else None,
        percent=None if step is None or not total else int(100 * step // total),
        loss=number(train.get("loss", status.get("loss"))), val_perplexity=number(evaluation.get("val_pp", summary.get("final_val_pp"))),
        steps_per_hour=rate, eta_seconds=left,
        segments=len(segments) or int(number(status.get("segments")) or 0), checkpoint_age_seconds=None if saved is None else max(0.0, now - saved),
        updated_age_seconds=age, job_id=job_id or None, queue=queued, queue_reason=job.reason if job else None,
        queue_start=job.start if job else None, disk_bytes=disk_bytes, reason=reason_of(record),
        segment_reason=words(last.get("reason") or ""), problems=closed or problems)


# finding folders


def is_checkpoint(name: str) -> bool:
    return bool(re.fullmatch(r"ckpt(_.*)?\.pt", name))


def is_experiment(names: Iterable[str]) -> bool:
    return any(name in (STATUS, SEGMENTS, SUMMARY, OUTCOME) or is_checkpoint(name) for name in names)


def find(bases: Sequence[Path]) -> dict[Path, str]:
    """Name of each experiment's folder, and of each that may not be read; a name tells its base only where two are alike."""
    found: dict[Path, tuple[Path, str]] = {}

    def add(base: Path, folder: Path) -> None:
        found.setdefault(folder.resolve(), (base, base.resolve().name if folder == base else str(folder.relative_to(base))))

    for base in bases:
        refusals: list[OSError] = []
        if not base.is_dir():
            raise UserError(f"{base}: no such folder; name another, or set RESULTS_DIR")
        for folder, _, names in os.walk(base, onerror=refusals.append):
            if is_experiment(names):
                add(base, Path(folder))
        for error in refusals:
            if not isinstance(error, FileNotFoundError):  # one that vanished meanwhile
                add(base, Path(error.filename))
    alike = Counter(name for _, name in found.values())
    return {folder: name if alike[name] == 1 else str(base / name) for folder, (base, name) in found.items()}


def default_folder() -> Path:
    """As iridis/env.sh chooses, and then main.py."""
    if os.environ.get("RESULTS_DIR"):
        return Path(os.environ["RESULTS_DIR"])
    places = (Path("/scratch", os.environ.get("USER", ""), "exps"), Path(__file__).resolve().parents[1] / "scratch" / "exps")
    return next((place for place in places if os.path.isdir(place)), Path("exps"))


def survey(bases: Sequence[Path]) -> tuple[dict[Path, Progress], Queue]:
    """Every experiment in order of its name, and the queue. Raises UserError where there is none."""
    queue, now, rows = read_queue(), time.time(), {}
    for folder, name in sorted(find(bases).items(), key=lambda item: item[1]):
        row = look(folder, name, queue, now)
        try:
            os.lstat(folder)
        except FileNotFoundError:  # it vanished meanwhile; another error is in its row
            continue
        except OSError:
            pass
        rows[folder] = row
    if not rows:
        raise UserError(f"no experiment in {', '.join(map(str, bases))}")
    return rows, queue
