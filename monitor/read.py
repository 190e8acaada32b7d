"""Where every experiment stands, from its folder and the queue. It only reads, and needs neither torch nor
SLURM.

rows, queue = survey([Path("exps")])
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from config.places import RESULTS, places
from errors import UserError
from iridis.arrays import experiments, mark_of
from iridis.chain import AGAIN, STOP
from monitor.page import Newest, Progress, words
from optim.evaluations import AT_END, Row, as_float, final_rows, foremost, measured, split_name
from optim.lock import STALE_SECONDS
from optim.names import METRICS, SEGMENTS, STATUS, SUMMARY
from optim.outcome import OUTCOME, Kind
from optim.reader import Record, newest_rows
from report.trajectory import KNOWN_LENGTHS, remark

SILENT_SECONDS = 600.0  # a run that says "running" and has changed nothing for so long
SQUEUE_SECONDS = 10.0  # patience with the queue
# in what SLURM's programs say where they are installed and there is no cluster; so does iridis/lib.sh
NO_CLUSTER = "configuration source"
CHECKPOINT = re.compile(r"ckpt(_.*)?\.pt")
# by which a user changes what squeue shows when it is typed by hand
OF_A_PROFILE = ("SQUEUE_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
UNDER_WAY = ("RUNNING", "CONFIGURING", "COMPLETING")
# the name of a job, as iridis/train.sh and name_job make it
TRAINING = re.compile(r"train-(?P<experiment>.+)-(?P<mark>[0-9a-f]{8})")
PACKAGES = Path(__file__).resolve().parents[1] / "iridis"


@dataclass(frozen=True)
class Job:
    id: str
    state: str
    reason: str
    start: str
    name: str

    @property
    def is_running(self) -> bool:
        return self.state == "RUNNING"

    def note(self) -> str:
        """What it waits for, empty where it is under way."""
        if self.state == "PENDING":
            return (
                f"job {self.id} waits ({self.reason}), expected start"
                f" {self.start if self.start not in ('', 'N/A') else 'unknown'}"
            )
        return "" if self.state in UNDER_WAY else f"job {self.id} is {self.state} ({self.reason})"


@dataclass(frozen=True)
class Queue:
    """The user's jobs by id, None without SLURM; `note` says why they are not known where it is there."""

    jobs: dict[str, Job] | None
    note: str = ""

    @cached_property
    def trainings(self) -> dict[str, list[Job]]:
        """Jobs of the training of an experiment, by the mark of its folder, those that run first."""
        found: dict[str, list[Job]] = {}
        for job in sorted(dict.fromkeys((self.jobs or {}).values()), key=lambda job: not job.is_running):
            match = TRAINING.fullmatch(job.name)
            if match:
                found.setdefault(match["mark"], []).append(job)
        return found

    def jobs_of(self, folder: Path, job_id: str) -> list[Job]:
        """Jobs of an experiment, those that run first: the one that its files name, and all that are named
        for it.
        """
        own = [self.jobs[job_id]] if self.jobs and job_id in self.jobs else []
        named = self.trainings.get(mark_of(folder), []) if self.trainings else []
        return sorted(dict.fromkeys([*own, *named]), key=lambda job: not job.is_running)

    def has_lost(self, job_id: str) -> bool:
        """Whether the files name a SLURM job that the queue, which did answer, does not have."""
        return self.jobs is not None and not self.note and is_slurm_job(job_id) and job_id not in self.jobs

    def word(self, jobs: Sequence[Job], job_id: str) -> str | None:
        """For the table; None where there is no SLURM, or a host and process that is no job of it."""
        if jobs:
            return jobs[0].state
        if self.jobs is None or not is_slurm_job(job_id):
            return None
        return "?" if self.note else "no job"


def is_slurm_job(job_id: str) -> bool:
    return re.fullmatch(r"\d+(_\d+)?", job_id) is not None


def read_queue() -> Queue:
    """The user's jobs, from squeue where there is one."""
    command = ["squeue", "--me", "-a", "-h", "-r", "-o", "%i|%T|%r|%A|%S|%j"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_PROFILE)}
    configuration = env.get("SLURM_CONF")
    # squeue would look for it for a minute
    if configuration and shutil.which(command[0]) and not os.access(configuration, os.R_OK):
        return Queue({}, f"squeue was not asked: SLURM_CONF={words(configuration)}: there is no such file")
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SQUEUE_SECONDS,
            stdin=subprocess.DEVNULL,
            env=env,
        )
    except FileNotFoundError:
        return Queue(None)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Queue({}, f"squeue did not answer: {error}")
    if answer.returncode:
        if NO_CLUSTER in answer.stderr:
            return Queue(None)
        return Queue({}, f"squeue failed: {words(answer.stderr) or answer.returncode}")
    jobs = {}
    rows = [[*map(words, line.split("|", 5)), *[""] * 6][:6] for line in answer.stdout.splitlines()]
    tasks = experiments(PACKAGES, {shown.partition("_")[0] for shown, *_ in rows if "_" in shown})
    for shown, state, reason, plain, start, name in rows:
        if shown in tasks and not TRAINING.fullmatch(name):  # a task of a sweep that has not begun
            name = f"train-{tasks[shown].name}-{mark_of(tasks[shown])}"
        # of an array: 12_3, and the number that its jobs know
        jobs[shown] = jobs[plain] = Job(shown, state, reason, start, name)
    return Queue(jobs)


# reading a folder


def weigh(folder: Path, problems: list[str]) -> tuple[int, float | None]:
    """Bytes of all files, and when the newest checkpoint was written."""
    total, saved, top = 0, None, str(folder)
    waiting = [top]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    with suppress(OSError):  # pruned meanwhile
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                            continue
                        facts = entry.stat(follow_symlinks=False)
                        total += facts.st_size
                        if parent == top and is_checkpoint(entry.name):
                            saved = max(saved or 0.0, facts.st_mtime)
        except OSError as error:
            if parent == top and not isinstance(error, FileNotFoundError):
                problems.append(f"folder: {error.strerror}")
    return total, saved


def updated_at(folder: Path, status: Row, *rows: Row) -> float | None:
    """When the run last wrote. A held lock is renewed every few seconds, also during a long evaluation."""
    clocks = (row.get("time") for row in rows)
    times = [
        as_float(status.get("updated")),
        *(as_float(clock.get("unix")) for clock in clocks if isinstance(clock, dict)),
    ]
    with suppress(OSError):
        lock = (folder / "lock").stat()
        times.append(lock.st_mtime if lock.st_size else None)
    return max((moment for moment in times if moment is not None), default=None)


def state_of(record: Record, summary: Row, problems: list[str], age: float | None, job: Job | None) -> str:
    """The state that the run recorded, by its status or a later ending; `silent` where it says running and
    nobody hears of it, `refused` where the only runs were refused before they began.
    """
    if record.status:
        is_silent = age is not None and age > SILENT_SECONDS and (job is None or not job.is_running)
        state = record.status.get("state", "unknown")
        if record.ending is not None and state != "finished":
            return record.ending.state
        return "silent" if state == "running" and is_silent else words(state)[:20]
    if summary:
        return "finished"
    if problems:
        return "unreadable"
    if record.outcome is None:
        return "unknown"
    # nothing has run there yet, so nothing has failed
    return "refused" if record.outcome.kind == Kind.REFUSED else record.outcome.state


def reason_of(record: Record) -> str:
    """Why the last run ended: as its outcome says, where it did not come as far as a status, else as it
    said itself.
    """
    outcome = record.ending if record.status else record.outcome
    return words(outcome.reason if outcome is not None else record.status.get("reason") or "")


def dead_chain(record: Record, queue: Queue, job_id: str, age: float | None) -> str | None:
    """Why an unfinished experiment, which no job trains or waits for, has no further job; empty where no
    reason was given.

    None where no chain, or no end of it, is known. job_id: the job that the files name.
    """
    last = record.segments[-1] if record.segments else {}
    chain = words(last.get("chain") or "")
    if chain.startswith(STOP):
        return chain.removeprefix(STOP).lstrip(": ")
    with suppress(OSError):
        # the queue shows nobody else's jobs
        if not queue.has_lost(job_id) or record.folder.stat().st_uid != os.getuid():
            return None
    if chain == AGAIN:
        return "another job was promised, none is queued"
    is_over = record.status.get("state") == "running" and age is not None and age > STALE_SECONDS
    return f"job {job_id} is gone, none is queued" if is_over else None


def yardstick_of(record: Record, evaluation: Row) -> str | None:
    """How a training in progress compares with the paper's re-run at its last evaluation; None where that is
    not known.

    A checkpoint is opened only if the number of planned steps is that of a known training.
    """
    step, perplexity = as_float(evaluation.get("step")), as_float(evaluation.get("val_pp"))
    if step is None or perplexity is None or as_float(record.status.get("iterations")) not in KNOWN_LENGTHS:
        return None
    with suppress(OSError):  # the folder may not be listed, or vanished meanwhile
        return remark(record.flags, int(step), perplexity)
    return None


def progress_of(folder: Path, name: str, queue: Queue, now: float) -> Progress:
    """Everything about one experiment that its folder and the queue say."""
    problems: list[str] = []
    disk_bytes, saved = weigh(folder, problems)
    closed = problems[:]  # of a folder that may not be read the files need no words of their own
    record = Record(folder, problems)
    status = record.status
    summary = {} if status or problems else record.summary or {}
    segments = record.segments
    train, evaluated = newest_rows(folder / METRICS, problems, status.get("state") == "finished")
    evaluated = evaluated or final_rows(summary)
    best = record.best
    chosen = foremost(evaluated, "val_pp", best)
    evaluation = {} if chosen is None else evaluated[chosen]
    last = segments[-1] if segments else {}
    job_id = words(status.get("job_id") or last.get("job_id") or "")
    jobs = queue.jobs_of(folder, job_id)
    updated = updated_at(folder, status, train, *evaluated.values())
    age = None if updated is None else max(0.0, now - updated)
    state = state_of(record, summary, problems, age, jobs[0] if jobs else None)
    total = as_float(status.get("iterations")) or (as_float(record.done_iterations) if summary else None)
    steps = (
        as_float(row.get(key))
        for row, key in ((status, "itr"), (summary, "itr"), (train, "step"), (last, "end_step"))
    )
    step = next((found for found in steps if found is not None), None)
    rate = record.steps_per_hour()
    left = (
        as_float(max(0.0, total - step) / rate * 3600)
        if rate and total and step is not None and state != "finished"
        else None
    )
    return Progress(
        name=words(name),
        folder=words(folder),
        state=state,
        step=None if step is None else int(step),
        iterations=int(total) if total else None,
        percent=None if step is None or not total else int(100 * step // total),
        loss=as_float(train.get("loss", status.get("loss"))),
        val_perplexity=as_float(evaluation.get("val_pp")),
        val_bpb=as_float(evaluation.get("val_bpb")),
        evaluation=chosen,
        evaluations={words(name): newest(row) for name, row in evaluated.items()},
        best=best,
        mixture=record.mixture if any(evaluated) else {},
        steps_per_hour=rate,
        eta_seconds=left,
        segments=len(segments) or int(as_float(status.get("segments")) or 0),
        checkpoint_age_seconds=None if saved is None else max(0.0, now - saved),
        updated_age_seconds=age,
        disk_bytes=disk_bytes,
        reason=reason_of(record),
        segment_reason=words(last.get("reason") or ""),
        chain_end=None if jobs or state == "finished" else dead_chain(record, queue, job_id, age),
        problems=closed or problems,
        yardstick=None if state == "finished" else yardstick_of(record, evaluation),
        **in_queue(queue, jobs, job_id),
    )


def newest(row: Row) -> Newest:
    """What is shown of the last row of an evaluation."""
    kind, step = split_name(row.get("kind"))[0], as_float(row.get("step"))
    values = {words(key): value for key, value in measured(row).items()}
    return Newest(None if step is None else int(step), kind == AT_END, values)


def in_queue(queue: Queue, jobs: Sequence[Job], job_id: str) -> dict[str, Any]:
    """What a Progress says of the queue. job_id: the job that the files name."""
    job = jobs[0] if jobs else None
    # of a job of an array the files know another number than the queue shows
    name = job_id if job is None or (queue.jobs or {}).get(job_id) is job else job.id
    waiting = [replace(each, id=name if each is job else each.id).note() for each in jobs]
    return {
        "job_id": name or None,
        "queue": queue.word(jobs, job_id),
        "queue_reason": job.reason if job else None,
        "queue_start": job.start if job else None,
        "waiting": list(filter(None, waiting)),
    }


# experiments without a folder


def first_jobs(queue: Queue, known: Iterable[Path], bases: Sequence[Path]) -> dict[Path, Progress]:
    """Experiments whose first job has yet to make their folder, but for those that belong elsewhere than
    below `bases`.
    """
    marks = set(map(mark_of, known)) if queue.trainings else set()
    unknown = {mark: jobs for mark, jobs in queue.trainings.items() if mark not in marks}
    folders = submitted() if unknown else {}
    found = {}
    for mark, jobs in unknown.items():
        match, folder = TRAINING.fullmatch(jobs[0].name), folders.get(mark)
        base = next(
            (
                base.resolve()
                for base in bases
                if folder is not None and folder.is_relative_to(base.resolve())
            ),
            None,
        )
        if match is not None and (folder is None or base is not None):
            name = match["experiment"] if folder is None or base is None else str(folder.relative_to(base))
            found[folder or Path(jobs[0].name)] = unbegun(queue, jobs, name, folder)
    return found


def submitted() -> dict[str, Path]:
    """Folders of the experiments for which jobs were submitted from this clone, by their mark."""
    found = {}
    for path in [*PACKAGES.glob("*/run_*/experiment.txt"), *PACKAGES.glob("*/run_*/cell_*/experiment.txt")]:
        with suppress(OSError, UnicodeDecodeError):
            folder = Path(path.read_text().removesuffix("\n"))
            found[mark_of(folder)] = folder
    return found


def unbegun(queue: Queue, jobs: Sequence[Job], name: str, folder: Path | None) -> Progress:
    """An experiment with jobs and no folder."""
    return Progress(
        name=words(name),
        folder=words(folder or ""),
        state="queued" if jobs[0].state == "PENDING" else "starting",
        step=None,
        iterations=None,
        percent=None,
        loss=None,
        val_perplexity=None,
        steps_per_hour=None,
        eta_seconds=None,
        segments=0,
        checkpoint_age_seconds=None,
        updated_age_seconds=None,
        disk_bytes=0,
        reason="",
        segment_reason="",
        chain_end=None,
        problems=[],
        **in_queue(queue, jobs, jobs[0].id),
    )


# finding folders


def is_checkpoint(name: str) -> bool:
    return CHECKPOINT.fullmatch(name) is not None


def is_experiment(names: Iterable[str]) -> bool:
    return any(name in (STATUS, SEGMENTS, SUMMARY, OUTCOME) or is_checkpoint(name) for name in names)


def find(bases: Sequence[Path]) -> dict[Path, str]:
    """Name of each experiment's folder, and of each that may not be read; a name tells its base only where
    two are alike.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for base in bases:
        refusals: list[OSError] = []
        if not base.is_dir():
            raise UserError(f"{base}: no such folder; name another, or set RESULTS_DIR")
        root = base.resolve()  # what is below it needs no resolving: links are not followed
        places = [
            folder for folder, _, names in os.walk(root, onerror=refusals.append) if is_experiment(names)
        ]
        # one that vanished meanwhile is left out
        places += [error.filename for error in refusals if not isinstance(error, FileNotFoundError)]
        for place in map(Path, places):
            found.setdefault(place, (base, root.name if place == root else str(place.relative_to(root))))
    alike = Counter(name for _, name in found.values())
    return {folder: name if alike[name] == 1 else str(base / name) for folder, (base, name) in found.items()}


def default_folder() -> Path:
    """As iridis/env.sh chooses, and then main.py."""
    return Path(places().get(RESULTS, "exps"))


def survey(bases: Sequence[Path]) -> tuple[dict[Path, Progress], Queue]:
    """Every experiment in order of its name, and the queue. Raises UserError where there is none."""
    queue, now, rows = read_queue(), time.time(), {}
    for folder, name in sorted(find(bases).items(), key=lambda item: item[1]):
        row = progress_of(folder, name, queue, now)
        try:
            os.lstat(folder)
        except FileNotFoundError:  # it vanished meanwhile; another error is in its row
            continue
        except OSError:
            pass
        rows[folder] = row
    rows |= first_jobs(queue, rows, bases)
    if not rows:
        raise UserError(f"no experiment in {', '.join(map(str, bases))}")
    return dict(sorted(rows.items(), key=lambda item: item[1].name)), queue
