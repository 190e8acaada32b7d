"""After a job of a chain: is the training finished, is another job worth its while, or must a person look?

    python -m iridis.chain EXPERIMENT_FOLDER --code EXIT_CODE [--cause "time limit"] [--log FILE]
    python -m iridis.chain EXPERIMENT_FOLDER --ended "why there is no further job"

Prints one line, `finished`, `again`, `stop` or `replaced`, then a colon and the reason; the ledger's row of this job gets it too. Run by
the job that did the training, after it. A chain goes on as long as its jobs advance the newest checkpoint; it stops
when three in a row did not, when the same step crashed twice, on bad input, and where a person stopped the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import config
from errors import UserError
from files import read_json
from optim.experiment import SUMMARY, Experiment, numbered, read_segments, step_of
from optim.lock import TAKEN_OVER, job_name, restart_count

FINISHED, AGAIN, STOP, REPLACED = "finished", "again", "stop", "replaced"
BAD_INPUT = 2
CANCELLED = "cancelled"
NOT_ITS_FAULT = ("requeued", "preempted")  # causes for which a job that had not begun to train is not blamed
FRUITLESS = 3  # jobs in a row that advanced no checkpoint
LONGEST_LINE = 300


def own_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of this start of this job, if the training came as far as writing one."""
    if rows and (rows[-1].get("job_id"), rows[-1].get("restart", 0)) == (job_name(), restart_count()):
        return rows[-1]
    return None


def advanced(row: dict[str, Any]) -> bool:
    return bool(row.get("end_step", 0) > row.get("start_step", 0))


def last_line(log: Path | None, since: int = 0) -> str:
    """The last thing that the training said, which is where errors are told. `since`: bytes that earlier starts of the job wrote."""
    try:
        lines = [line.strip() for line in (log.read_bytes()[since:].decode(errors="replace") if log else "").splitlines()]
    except OSError:
        return ""
    errors = [line for line in lines if ": error: " in line and not line.startswith(("srun: ", "slurmstepd: "))]
    lines = errors or [line for line in lines if line]
    return lines[-1][:LONGEST_LINE] if lines else ""


def verdict(folder: Path, rows: list[dict[str, Any]], code: int, cause: str, said: str) -> tuple[str, str]:
    """What becomes of the chain, and why. `rows`: the ledger, its last row this job's."""
    row = rows[-1]
    if (folder / SUMMARY).exists() and row["state"] == "finished":
        return FINISHED, "all iterations done"
    if code == BAD_INPUT:
        return STOP, said or row["reason"]
    if (folder / "stop").exists():
        return STOP, f"stopped by the file {folder / 'stop'}"
    if row["reason"] == "SIGINT" or cause == CANCELLED:
        return STOP, CANCELLED
    ends = [number for number, each in enumerate(rows[:-1], 1) if str(each.get("chain", "")).startswith(STOP)]
    rows = rows[ends[-1] if ends else 0:]  # what ended an earlier chain has been mended since
    tail = rows[-FRUITLESS:]
    if len(tail) == FRUITLESS and not any(map(advanced, tail)):
        return STOP, f"no progress in {FRUITLESS} jobs: {row['reason']}"
    crashes = [each for each in rows[-2:] if each.get("state") == "failed"]
    if len(crashes) == 2 and crashes[0].get("reached") == crashes[1].get("reached"):
        return STOP, f"crashed at step {row['reached']} twice: {row['reason']}"
    return AGAIN, row["reason"]


def judge(folder: Path, code: int, cause: str, said: str) -> tuple[str, str]:
    """Complete this job's row of the ledger, and decide. Raises UserError where another process has the experiment."""
    rows = read_segments(folder)
    if code == BAD_INPUT and TAKEN_OVER in said:  # with another code it is the line of an earlier start, which shares the log
        return REPLACED, said
    if own_row(rows) is None:
        if code == 0 and (folder / SUMMARY).exists():
            return FINISHED, "finished by an earlier job"
        if cause == CANCELLED:
            return STOP, cause
        if cause in NOT_ITS_FAULT:
            return AGAIN, cause
        if code == BAD_INPUT:
            return STOP, said
    iterations = (read_json(folder / "status.json") or {}).get("iterations", 0)
    experiment = Experiment(folder, iterations)
    try:
        row = own_row(experiment.segments)
        if row is None:
            at = max((step_of(path) or 0 for path in numbered(folder)), default=0)
            experiment.begin_segment(at)
            experiment.record("stopped" if cause else "failed", at, at, cause or f"exit code {code} at the start: {said}")
        elif row.get("state") == "running":
            how = f"signal {code - 128}" if code > 128 else f"exit code {code}"
            experiment.record("failed", row["reached"], row["end_step"], f"killed, {how}: {said}")
        elif row.get("state") == "stopped" and cause:
            row["reason"] = cause
        outcome, reason = verdict(folder, experiment.segments, code, cause, said)
        experiment.segments[-1]["chain"] = outcome if outcome != STOP else f"{STOP}: {reason}"
        experiment.write_segments()
    finally:
        experiment.close()
    return outcome, reason


def note_end(folder: Path, reason: str) -> None:
    """Put into the ledger why the chain ends, where there is a ledger and nobody else has the experiment."""
    if not read_segments(folder):
        return
    experiment = Experiment(folder, (read_json(folder / "status.json") or {}).get("iterations", 0))
    try:
        experiment.segments[-1]["chain"] = f"{STOP}: {reason}"
        experiment.write_segments()
    finally:
        experiment.close()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="iridis.chain", description="Decide whether a training needs another job.")
    parser.add_argument("folder", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--code", type=int)
    what.add_argument("--ended")
    parser.add_argument("--cause", default="")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--log-since", type=int, default=0)
    args = parser.parse_args(argv)
    if args.ended:
        with suppress(UserError, OSError):  # another has the experiment, or the disk is full: the job has said it too
            note_end(args.folder, args.ended)
        return 0
    try:
        outcome, reason = judge(args.folder, args.code, args.cause, last_line(args.log, args.log_since))
    except UserError as error:
        outcome, reason = STOP, str(error).splitlines()[0]
    except OSError as error:  # a full disk: the ledger cannot be written either, but the job must know
        outcome, reason = STOP, "; ".join(filter(None, [last_line(args.log, args.log_since), f"{error.filename or args.folder}: {error.strerror}"]))
    print(f"{outcome}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(config.guarded("iridis.chain", lambda: main(sys.argv[1:])))
