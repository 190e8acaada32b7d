"""Checkpoints of a training, written one after the other while it goes on."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from errors import UserError
from files import TRANSIENT_ERRORS
from optim import history
from optim.checkpoint import prune, save_checkpoint, to_cpu
from optim.names import BEST


def release(error: BaseException) -> None:
    """Let go of what the frames of an error hold: the removed file of a failed write, still open there,
    would keep the disk full.
    """
    reason: BaseException | None = error
    while reason is not None:
        traceback.clear_frames(reason.__traceback__)
        reason = reason.__cause__ or reason.__context__


class BackgroundWriter:
    """Writes one checkpoint at a time in a thread; the training waits only for the copy of its tensors."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Start `work` once the one before is done. Raises what the one before raised."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # handed to the training loop by wait()
                release(error)
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint-writer")
        self._thread.start()

    @property
    def idle(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        """Return when nothing is being written; raise what the last write raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


class Saver:
    """Idle, or writing the checkpoint of the step `being_saved`. Only the main process writes; elsewhere it
    stays idle.

    saved_step: of the newest checkpoint in the folder, 0 where there is none. slowest: seconds of the slowest
    write.
    kept_steps: whose checkpoints are never deleted. resumed_from: the checkpoint that this run began with; it
    stays, too.
    """

    def __init__(
        self, folder: Path, keep: int, kept_steps: Iterable[int], beat: Callable[[], object]
    ) -> None:
        """keep: how many of the newest numbered checkpoints stay, 0 for all. beat: called when a write has
        ended.
        """
        self.folder, self.keep, self.beat = folder, keep, beat
        self.kept_steps = set(kept_steps)
        self.resumed_from: Path | None = None
        self.saved_step = 0
        self.being_saved: int | None = None
        self.slowest = 0.0
        self._name = ""
        self._began = 0.0
        self._writer = BackgroundWriter()

    def start(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a state, whose step is state["itr"]; returns once it is copied and the one before it is
        written. best.pt is replaced, and no place to resume from: it does not count as saved.

        Raises UserError, or OSError, where the one before could not be written.
        """
        path, step, copy = self.folder / name, state["itr"], to_cpu(state)
        protected = {path} if self.resumed_from is None else {path, self.resumed_from}
        kept_steps = frozenset(self.kept_steps)
        self.settle()

        def write() -> None:
            if name == BEST:  # the one before it has had its time
                save_checkpoint(path, copy)
                return
            history.make_way(path, step)
            save_checkpoint(path, copy)
            prune(self.folder, self.keep, protected, kept_steps)

        self.being_saved, self._name, self._began = step, name, time.monotonic()
        self._writer.submit(write)

    def settle(self) -> None:
        """Wait for the checkpoint that is being written and count it.

        Raises UserError, or OSError, where it could not be written.
        """
        try:
            self._writer.wait()
            self.beat()
        except OSError as error:
            failed, self.being_saved = self.being_saved, None
            message = (
                f"the checkpoint of step {failed} could not be written: {error.strerror or error};"
                f" {self.last_good()}"
            )
            if error.errno in TRANSIENT_ERRORS:  # nothing for the user to fix: the chain tries again
                raise OSError(error.errno, message, str(self.folder)) from None
            raise UserError(message) from None
        if self.being_saved is not None:
            if self._name != BEST:
                self.saved_step = self.being_saved
            self.being_saved = None
            self.slowest = max(self.slowest, time.monotonic() - self._began)

    def settle_if_written(self) -> None:
        """As `settle`, but without waiting."""
        if self.being_saved is not None and self._writer.idle:
            self.settle()

    def has(self, step: int) -> bool:
        """Whether a step is saved, or being saved."""
        return step == self.saved_step or (step == self.being_saved and self._name != BEST)

    def last_good(self) -> str:
        """For messages."""
        return (
            f"the last good checkpoint is of step {self.saved_step}"
            if self.saved_step
            else "there is no checkpoint yet"
        )
