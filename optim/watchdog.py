"""Ends a process that hangs, so that its chain starts another job instead of waiting for the time limit."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable

HUNG = 1  # exit code: a crash, so that launcher and chain take it for one
CHECKS = 20  # within the time that is allowed
LAST_WORDS_SECONDS = 10


class Watchdog:
    """Use as a context manager: within it `beat` must be called at least every `minutes` (0: no watchdog).

    where: says in words what the process was doing; record: is called with the reason before the process
    ends. Stacks of all threads go to stderr. Checks are counted, not seconds: a process that SLURM suspends
    makes none, and is not ended when it is resumed.
    """

    def __init__(
        self, minutes: float, where: Callable[[], str], record: Callable[[str], None] = lambda what: None
    ) -> None:
        self.seconds, self.where, self.record = 60 * minutes, where, record
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.beat()

    def beat(self) -> None:
        """The process has made progress."""
        self._checks = 0

    def __enter__(self) -> Watchdog:
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(self.seconds / CHECKS):
            self._checks += 1
            if self._checks > CHECKS:
                # straight to the descriptor, and no cleaning up: whatever holds the process may hold those
                # too; and where stderr hangs, the alarm ends the process
                signal.alarm(LAST_WORDS_SECONDS)
                what = f"watchdog: {self.where()} has not got on for {self.seconds / 60:g} minutes"
                os.write(2, f"main.py: error: {what}; stacks follow\n".encode())
                faulthandler.dump_traceback(2)
                self.record(what)
                os._exit(HUNG)
