"""When a run should stop with its work saved: a signal, a file, the end of its time or of its job; agreed on
by all processes.

A signal handler only sets a flag; the processes compare flags between steps, where all of them stand at one
place.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from config.groups.run import DEFAULT_STOP_SIGNALS, STOP_SIGNALS
from distributed.world import World
from errors import Replaced
from optim.lock import TAKEN_OVER

STOP_FILE, TIME, JOB_END, LOST = "stop file", "max_runtime_minutes", "end of the job", "lost"
REASONS = ["", *STOP_SIGNALS, STOP_FILE, TIME, JOB_END, LOST]
SAVE_MARGIN_SECONDS = 2.0
JOB_MARGIN_SECONDS = 15.0  # a job script stops a run well before; this is for one that cannot
LONGEST_REASON = 200
ONE_INTERRUPT_SECONDS = 1.0  # in which a SIGINT comes from the terminal and from the launcher too


class Stopper:
    """Use as a context manager: signal handlers are installed on entering and restored on leaving.

    A run stops when any of `stop_files` exists; its content, if it has any, is the reason. The first is the
    experiment's own, by which a person stops it; another is that of the job. `is_lost` is called on the main
    process: whether another process has taken the experiment over. `signals` are the names of those that stop
    the run (None: all but SIGXCPU); others keep their default action.
    """

    def __init__(
        self,
        world: World,
        stop_files: Sequence[Path],
        max_runtime_minutes: float | None,
        began: float,
        signals: Sequence[str] | None = None,
    ) -> None:
        self.world, self.stop_files = world, stop_files
        self.signals = [signal.Signals[name] for name in signals or DEFAULT_STOP_SIGNALS]
        self.is_lost: Callable[[], bool] = lambda: False
        self.deadlines = (
            {TIME: (began + 60 * max_runtime_minutes, SAVE_MARGIN_SECONDS)}
            if max_runtime_minutes is not None
            else {}
        )
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        if end.isdigit() and int(end) > began:
            self.deadlines[JOB_END] = (int(end), JOB_MARGIN_SECONDS)
        self.slowest_step = self.slowest_save = 0.0
        self.reason = ""
        self.by_hand = False  # whether a person stopped the run, so that no chain takes it up again
        self._signal = 0
        self._interrupted_at = -math.inf
        self._old: dict[signal.Signals, object] = {}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def __enter__(self) -> Stopper:
        for signum in self.signals:
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup has it
                self._old[signum] = signal.signal(signum, self._note)
        # the launcher starts its workers with these held back; one that came meanwhile arrives now
        self._blocked = signal.pthread_sigmask(
            signal.SIG_UNBLOCK, [signal.Signals[name] for name in STOP_SIGNALS]
        )
        return self

    def __exit__(self, *unused: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        for signum, handler in self._old.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            now = time.monotonic()
            # a second Ctrl-C means now
            if self._signal and now - self._interrupted_at > ONE_INTERRUPT_SECONDS:
                raise KeyboardInterrupt
            self._interrupted_at = now
        if signum == signal.SIGHUP:
            self._leave_closed_terminals()
        if self.world.is_main:
            with suppress(OSError):
                # safe inside a handler
                os.write(2, f"{signal.Signals(signum).name}: stopping after this step\n".encode())
        self._signal = REASONS.index(signal.Signals(signum).name)

    def _leave_closed_terminals(self) -> None:
        """Discard the output of this process from now on: writing to a terminal that is gone fails."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

    def poll(self) -> bool:
        """Whether to stop; every process must call this at the same place. `reason` then says why."""
        flag = REASONS.index(self._cause()) if self.world.is_main else self._signal
        self.reason = REASONS[self.world.largest(flag)]
        if self.reason == LOST:
            raise Replaced(f"{TAKEN_OVER}; this run ends without saving")
        self.by_hand = self.reason == signal.SIGINT.name or any(path.exists() for path in self.stop_files[:1])
        if self.reason == STOP_FILE and self.world.is_main:
            self.reason = self._words() or STOP_FILE
        return bool(self.reason)

    def _cause(self) -> str:
        """The main process's reason to stop, or an empty one."""
        if self.is_lost():
            return LOST
        if self._signal:
            return REASONS[self._signal]
        if any(path.exists() for path in self.stop_files):
            return STOP_FILE
        ahead = time.time() + self.slowest_step + self.slowest_save
        return next((reason for reason, (end, margin) in self.deadlines.items() if ahead + margin > end), "")

    def _words(self) -> str:
        """What a job wrote into the file with which it stops the run."""
        for path in self.stop_files:
            with suppress(OSError):
                return path.read_text(errors="replace").strip()[:LONGEST_REASON]
        return ""
