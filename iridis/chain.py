"""After a job of a chain: is the training finished, should another job run, or is a person needed?

    python -m iridis.chain EXPERIMENT_FOLDER --code EXIT_CODE [--outcome FILE] [--cause CAUSE]
        [--memory MEMORY]
    python -m iridis.chain EXPERIMENT_FOLDER --ended "why there is no further job"

Prints two lines, VERDICT= (finished, again, stop or replaced) and REASON=, and writes them into the row of
this job in segments.jsonl. Run by the job that did the training, after it. FILE is the outcome that its
main.py wrote for it; without one, what the exit code says is written into the experiment's folder. A chain
goes on as long as its jobs advance the newest checkpoint; it stops when three in a row did not, when the same
step crashed twice, on bad input, and where a person or a hook stopped the run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import config
from errors import UserError
from files import write_json
from optim.evaluations import Row
from optim.experiment import Experiment
from optim.lock import job_name, restart_count
from optim.names import STOP as STOP_FILE
from optim.outcome import OUTCOME, Kind, Outcome, ended, of_error, of_exit_code, read_outcome
from optim.reader import Record, advanced, printed
from processes import code_facts

FINISHED, AGAIN, STOP, REPLACED = "finished", "again", "stop", "replaced"
FRUITLESS = 3  # jobs in a row that advanced no checkpoint


class Cause(StrEnum):
    """Why SLURM, or the job itself, asked the training to end."""

    NONE = ""
    TIME_LIMIT = "time limit"
    # that took longer than the signal before the limit allows for; killed
    OUTLASTED = "time limit within a step or save"
    REQUEUED = "requeued"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    TERMINATED = "SIGTERM"  # SLURM does not say why


NOT_ITS_FAULT = (Cause.REQUEUED, Cause.PREEMPTED)  # a job that had not begun to train is not blamed


def oom_killed(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether the kernel has killed a process of this job's control groups for lack of memory.

    Parent groups count other jobs' processes too.
    """
    counts = ""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, kinds, place = line.split(":", 2)
            unified = number == "0" and not kinds
            if unified or kinds == "memory":
                base, name = (root, "memory.events") if unified else (root / "memory", "memory.oom_control")
                parts = place.strip("/").split("/")
                job = next((n for n, part in enumerate(parts, 1) if part.startswith("job_")), len(parts) + 1)
                for n in range(job, len(parts) + 1):
                    file = base.joinpath(*parts[:n], name)
                    counts += file.read_text() if file.is_file() else ""
    return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in counts.splitlines())


def seen(code: int, reported: Outcome | None, memory: str) -> Outcome | None:
    """How the training ended: as it reported, unless it was killed for its memory; then its other processes
    reported a crash at most.
    """
    if code == 0 or (reported is not None and reported.kind != Kind.CRASHED) or not oom_killed():
        return reported
    reason = (
        f"out of memory: the job had MEMORY={memory}, of which its processes took more; set a larger MEMORY"
    )
    return ended(Kind.OUT_OF_MEMORY, reason, reported.step if reported else None)


def own_row(rows: list[Row]) -> Row | None:
    """The row of this start of this job, if the training has written one."""
    if rows and (rows[-1].get("job_id"), rows[-1].get("restart", 0)) == (job_name(), restart_count()):
        return rows[-1]
    return None


def verdict(folder: Path, rows: list[Row], outcome: Outcome, cause: Cause) -> tuple[str, str]:
    """The decision on the chain, and its reason. `rows`: of segments.jsonl, the last one this job's."""
    row = rows[-1]
    if outcome.is_done:
        return FINISHED, outcome.reason
    if outcome.kind in (Kind.REFUSED, Kind.BAD_NUMBERS, Kind.PAUSED):
        return STOP, outcome.reason
    if (folder / STOP_FILE).exists():
        return STOP, f"stopped by the file {folder / STOP_FILE}"
    if outcome.by_hand or cause == Cause.CANCELLED:
        return STOP, Cause.CANCELLED
    ends = [n for n, each in enumerate(rows[:-1], 1) if str(each.get("chain", "")).startswith(STOP)]
    rows = rows[ends[-1] if ends else 0 :]  # what ended an earlier chain has been fixed since
    tail = rows[-FRUITLESS:]
    if len(tail) == FRUITLESS and not any(map(advanced, tail)):
        return STOP, f"no progress in {FRUITLESS} jobs: {row['reason']}"
    crashes = [each for each in rows[-2:] if each.get("state") == "failed"]
    if len(crashes) == 2 and crashes[0].get("reached") == crashes[1].get("reached"):
        return STOP, f"crashed at step {row['reached']} twice: {row['reason']}"
    return AGAIN, row["reason"]


def judge(folder: Path, code: int, cause: Cause, reported: Outcome | None) -> tuple[str, str]:
    """Complete this job's row of segments.jsonl, and decide. Raises UserError where another process has the
    experiment.

    reported: how the training says that it ended.
    """
    if reported is not None and reported.kind == Kind.REPLACED:
        return REPLACED, reported.reason
    record = Record(folder)
    if own_row(record.segments) is None:
        early = _before_its_row(code, cause, reported)
        if early is not None:
            return early
    experiment = Experiment(folder, record.iterations or 0)
    try:
        outcome = reported or _unreported(code, own_row(experiment.segments))
        _complete_row(experiment, record, outcome, cause)
        if reported is None or reported.kind == Kind.OUT_OF_MEMORY:
            write_json(folder / OUTCOME, outcome.as_json())
        decision, reason = verdict(folder, experiment.segments, outcome, cause)
        experiment.segments[-1]["chain"] = decision if decision != STOP else f"{STOP}: {reason}"
        experiment.write_segments()
    finally:
        experiment.close()
    return decision, reason


def _before_its_row(code: int, cause: Cause, reported: Outcome | None) -> tuple[str, str] | None:
    """The decision on a job that ended before it had a row, where it needs none."""
    outcome = reported or of_exit_code(code)
    if outcome.is_done:
        return FINISHED, outcome.reason
    if cause == Cause.CANCELLED:
        return STOP, cause
    if cause in NOT_ITS_FAULT:
        return AGAIN, cause
    return (STOP, outcome.reason) if outcome.kind == Kind.REFUSED else None


def _unreported(code: int, row: Row | None) -> Outcome:
    """What is known of a training that left no outcome: the row of segments.jsonl that it may have completed,
    else its exit code.
    """
    row = row or {}
    if row.get("state") in (Kind.FINISHED, Kind.STOPPED):
        return ended(Kind(row["state"]), str(row.get("reason")), row.get("reached"))
    return of_exit_code(code, row.get("reached"))


def _complete_row(experiment: Experiment, record: Record, outcome: Outcome, cause: Cause) -> None:
    """Record how the job ended, where its training could not."""
    row = own_row(experiment.segments)
    if row is None:
        saved = record.saved_step
        experiment.begin_segment(saved, **code_facts())
        experiment.record(
            "stopped" if cause else "failed", saved, saved, cause or f"at the start: {outcome.reason}"
        )
    elif row.get("state") == "running" and cause == Cause.OUTLASTED:
        experiment.record("stopped", row["reached"], row["end_step"], cause)
    elif (
        row.get("state") == "running" or outcome.kind == Kind.OUT_OF_MEMORY
    ):  # of which the process that is left saw a lost connection
        experiment.record("failed", row["reached"], row["end_step"], outcome.reason)
    elif row.get("state") == "stopped" and cause:
        row["reason"] = str(cause)


def note_end(folder: Path, reason: str) -> None:
    """Write into segments.jsonl why the chain ends, where there is such a file and nobody else has the
    experiment.
    """
    record = Record(folder)
    if not record.segments:
        return
    experiment = Experiment(folder, record.iterations or 0)
    try:
        experiment.segments[-1]["chain"] = f"{STOP}: {reason}"
        experiment.write_segments()
    finally:
        experiment.close()


def decide(args: Any) -> tuple[str, str]:
    """The verdict, also where the experiment cannot be reached, as the job needs one."""
    reported = seen(args.code, read_outcome(args.outcome) if args.outcome else None, args.memory)
    try:
        return judge(args.folder, args.code, args.cause, reported)
    except (
        UserError,
        OSError,
    ) as error:  # another has the experiment, or the disk is full: segments.jsonl cannot be written either
        # its processes, stuck in the file system, have the experiment still
        if args.cause == Cause.OUTLASTED:
            return AGAIN, args.cause
        here = of_error(error).reason
        return STOP, "; ".join(
            dict.fromkeys([reported.reason, here] if reported and reported.state == "failed" else [here])
        )


def main(argv: Sequence[str]) -> int:
    parser = config.Arguments(prog="iridis.chain", description="Decide whether a training needs another job.")
    parser.add_argument("folder", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--code", type=int)
    what.add_argument("--ended")
    parser.add_argument("--outcome", type=Path)
    parser.add_argument("--memory", default="", help="what the job had")
    parser.add_argument("--cause", type=Cause, choices=list(Cause), default=Cause.NONE)
    args = parser.parsed(argv)
    if args.ended:
        # another has the experiment, or the disk is full: the job has said it too
        with suppress(UserError, OSError):
            note_end(args.folder, args.ended)
        return 0
    decision, reason = decide(args)
    print(printed({"VERDICT": decision, "REASON": "; ".join(reason.splitlines())}))
    return 0


if __name__ == "__main__":
    sys.exit(config.guarded("iridis.chain", lambda: main(sys.argv[1:])))
