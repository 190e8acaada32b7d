"""How a run ended: outcome.json {code, kind, reason, step}, which main.py always writes and the chain reads.

    ending = Ending(folder, copy)          # before anything can go wrong
    ending.take(lock); ending.held = True  # this run has the experiment
    outcome = ending.recorded(work)        # `work` returns an Outcome; an error is recorded and raised again

A run that is killed outright writes none; the job that started it then writes one for it (iridis/chain.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from distributed.launch import is_main_process
from errors import BAD_INPUT, STOPPED, OwnError, UserError, missing_package
from files import TRANSIENT_ERRORS, is_of_a_place, load_json, write_json
from optim.lock import Lock, holder

OUTCOME = "outcome.json"
INTERRUPTED = 130  # exit code after a second Ctrl-C
SIGNAL_CODES = 128  # a process that a signal ended has this exit code plus the signal's number
LONGEST_REASON = 500


class Kind(StrEnum):
    FINISHED = "finished"  # all steps are done, now or earlier
    COMPLETE = "complete"  # a hook found the training done before its last step
    PAUSED = "paused"  # a hook asks for a person: saved, work left
    STOPPED = "stopped"  # by a signal, a stop file or the end of its time: saved, work left
    REFUSED = "refused"  # bad input or environment
    BAD_NUMBERS = "bad numbers"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out of memory"
    REPLACED = "replaced"  # another process has taken the experiment over


CODES = {
    Kind.FINISHED: 0,
    Kind.COMPLETE: 0,
    Kind.PAUSED: STOPPED,
    Kind.STOPPED: STOPPED,
    Kind.REFUSED: BAD_INPUT,
    Kind.BAD_NUMBERS: BAD_INPUT,
    Kind.CRASHED: 1,
    Kind.OUT_OF_MEMORY: 1,
    Kind.REPLACED: BAD_INPUT,
}


@dataclass(frozen=True)
class Outcome:
    """step: where the training was, None if it had not begun. by_hand: a person stopped it, so it must not
    resume automatically.

    code: exit code of main.py; under torchrun a clean stop exits with 0 instead.
    """

    kind: Kind
    reason: str
    step: int | None
    code: int
    by_hand: bool = False

    @property
    def is_done(self) -> bool:
        """Whether no work is left."""
        return self.kind in (Kind.FINISHED, Kind.COMPLETE)

    @property
    def is_crash(self) -> bool:
        return self.kind in (Kind.CRASHED, Kind.OUT_OF_MEMORY)

    @property
    def state(self) -> str:
        """The word in status.json and segments.jsonl."""
        if self.is_done:
            return "finished"
        return "stopped" if self.kind in (Kind.PAUSED, Kind.STOPPED) else "failed"

    def as_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "kind": str(self.kind),
            "reason": self.reason,
            "step": self.step,
            "by_hand": self.by_hand,
        }


def ended(kind: Kind, reason: str, step: int | None = None, by_hand: bool = False) -> Outcome:
    """An outcome with the exit code of its kind."""
    return Outcome(kind, reason[:LONGEST_REASON], step, CODES[kind], by_hand)


def of_error(error: BaseException, step: int | None = None) -> Outcome:
    """What an error makes of a run, with the exit code that config.guarded ends with."""
    if isinstance(error, UserError):
        return ended(Kind(error.kind), str(error), step)
    if isinstance(error, KeyboardInterrupt):
        return Outcome(Kind.STOPPED, "interrupted before it could save", step, INTERRUPTED, by_hand=True)
    lacking = missing_package(error)
    if lacking is not None:
        return ended(Kind.REFUSED, lacking, step)
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and is_of_a_place(error):
        kind = Kind.CRASHED if error.errno in TRANSIENT_ERRORS else Kind.REFUSED
        return ended(kind, f"{error.filename or 'writing'}: {error.strerror}", step)
    # torch.OutOfMemoryError on a GPU; the allocator of CPUs raises a RuntimeError with its name
    no_memory = (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: " in words
    )
    return ended(Kind.OUT_OF_MEMORY if no_memory else Kind.CRASHED, words, step)


def of_exit_code(code: int, step: int | None = None) -> Outcome:
    """What is known of a run that left no outcome."""
    if code > SIGNAL_CODES:
        return ended(Kind.CRASHED, f"killed, signal {code - SIGNAL_CODES}", step)
    kind = Kind.REFUSED if code == BAD_INPUT else Kind.CRASHED
    return ended(kind, f"exit code {code}, for a reason that only its log has", step)


def read_outcome(path: Path) -> Outcome | None:
    """The outcome in a file; None where there is none that can be read."""
    try:
        value = load_json(path)
        kind = Kind(value["kind"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    reason = str(value.get("reason") or "")[:LONGEST_REASON]
    step = value.get("step")
    if not isinstance(step, int):
        step = None
    code = value.get("code")
    if not isinstance(code, int):
        code = CODES[kind]
    return Outcome(kind, reason, step, code, value.get("by_hand") is True)


class Ending:
    """Writes how this process's run ended: into the experiment's folder, and into `copy` for the job that
    started it.

    Of several processes the main one writes for all, unless only another one had an error. The first error
    counts: the others then fail for the loss of their connection. Nothing is written into the folder of an
    experiment that another run has.
    """

    def __init__(self, folder: Path, copy: Path | None, worded: Callable[[str], str] = str) -> None:
        """worded: names flags in a reason as the command line does."""
        self.folder, self.copy, self.worded = folder, copy, worded
        self.step: int | None = None  # where the training is
        self.held = False  # whether this run has the experiment
        self.lock: Lock | None = None  # with which the main process holds it
        if copy is not None and is_main_process():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)

    def take(self, lock: Lock) -> None:
        """The main process has the experiment: the outcome of an earlier run no longer holds."""
        self.lock = lock
        (self.folder / OUTCOME).unlink(missing_ok=True)

    def earlier(self) -> Outcome | None:
        """The outcome that a process of this run has already written."""
        return read_outcome(self.folder / OUTCOME) if self.held else None

    def record(self, outcome: Outcome) -> None:
        """Write it where it belongs. A full disk has been reported already, so it is ignored here."""
        if self.copy is not None and not self.copy.exists():
            with suppress(OSError):
                write_json(self.copy, outcome.as_json())
        with suppress(OSError):
            if self._is_ours():
                write_json(self.folder / OUTCOME, outcome.as_json())

    def _is_ours(self) -> bool:
        """Whether this run may write into the experiment's folder and no process of it has done so."""
        if not self.held:
            return self.folder.is_dir() and holder(self.folder / "lock") is None
        return not (self.folder / OUTCOME).exists() and (self.lock is None or self.lock.is_mine())

    def recorded(self, work: Callable[[], Outcome]) -> Outcome:
        """Do the work and record how it ended. Raises what it raises."""
        try:
            outcome = work()
        except BaseException as error:
            is_everyones = isinstance(error, UserError) and not isinstance(error, OwnError)
            if is_main_process() or not is_everyones:
                found = of_error(error, self.step)
                self.record(replace(found, reason=self.worded(found.reason)))
            raise
        if is_main_process():
            self.record(outcome)
        return outcome

    def hung(self, what: str) -> None:
        """For the watchdog, which ends the process without an exception."""
        self.record(ended(Kind.CRASHED, what, self.step))
