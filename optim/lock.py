"""Who trains an experiment: one process at a time, also where the file system has no locks, and past dead
holders.

The holder keeps a flock and renews the time of the file `lock`, which names it. A flock alone is not enough:
some cluster mounts keep locks within a node, some have none. So a lock that is free is taken at once only
where its last holder gave it up or was on this host; otherwise its file is watched, and taken when nobody has
renewed it for a while. Whoever finds another name in the file has lost the experiment and stops without
writing.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from errors import UserError
from files import load_json
from processes import is_running

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # silence after which a holder on another host counts as dead
# how long an earlier start of the same job may take to notice that it has been replaced
YIELD_SECONDS = 900.0
TAKEN_OVER = "another process has taken the experiment over"
SETTLE_SECONDS = 2.0  # without flock: time in which two that write at once see each other


def job_name() -> str:
    """The SLURM job's id, or the host and process. A task of an array is ARRAY_TASK: its SLURM_JOB_ID may be
    the id of the whole array.
    """
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID") or f"{socket.gethostname()}:{os.getpid()}"


def restart_count() -> int:
    """How often SLURM has requeued this job; 0 where the variable holds something else."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isascii() and count.isdigit() else 0


def read_holder(path: Path) -> dict[str, Any]:
    """The holder in a lock file; empty where it was given up, or is not readable as such."""
    try:
        value = load_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def name_of(holder: dict[str, Any]) -> str:
    name = str(holder.get("job", "another process"))
    return f"job {name} on {holder.get('host')}" if name.replace("_", "").isdigit() else name


def holder(path: Path) -> str | None:
    """Who seems to hold a lock, without trying to take it: it was renewed recently, and not by a dead process
    of this host.
    """
    who = read_holder(path)
    if not who or time.time() - path.stat().st_mtime > STALE_SECONDS:
        return None
    pid = who.get("pid")
    if who.get("host") == socket.gethostname() and not (isinstance(pid, int) and pid > 0 and is_running(pid)):
        return None
    return name_of(who)


class Lock:
    """Held from construction until `release`, or the end of the process.

    Raises UserError where another holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        self.me = {
            "job": job_name(),
            "restart": restart_count(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": secrets.token_hex(8),
        }
        self._file: IO[str] = open(path, "a+")  # noqa: SIM115  # held open
        self._released = threading.Event()
        self._take()
        self._write(self.me)
        if not self.has_flock:
            time.sleep(SETTLE_SECONDS)
            if read_holder(self.path) != self.me:
                raise self._refusal()
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            self.has_flock = self._flock()
        except BlockingIOError:
            if not self._is_earlier_start(read_holder(self.path)):
                raise self._refusal() from None
            self._replace_earlier_start()
            return
        holder = read_holder(self.path)
        if holder and not (self.has_flock and holder.get("host") == self.me["host"]) and self._is_alive():
            raise self._refusal()

    def _flock(self) -> bool:
        """Whether the file system has locks. Raises BlockingIOError where another process has this one."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True

    def _is_earlier_start(self, holder: dict[str, Any]) -> bool:
        """Whether SLURM gave the holder up for lost, requeued it, and this is its next start."""
        return (
            holder.get("job") == self.me["job"]
            and "SLURM_JOB_ID" in os.environ
            and holder.get("restart", 0) < restart_count()
        )

    def _replace_earlier_start(self) -> None:
        """Write this process's name into the file, and wait until the earlier start has seen it and ended."""
        refusal = self._refusal()
        self._write(self.me)
        end = time.monotonic() + YIELD_SECONDS
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                self.has_flock = self._flock()
                return
            time.sleep(1.0)
        raise refusal

    def is_mine(self) -> bool:
        """Whether the file names this process still."""
        return not self.lost and read_holder(self.path) == self.me

    def _is_alive(self) -> bool:
        """Whether a holder on another host renews the file. Its changes are watched, so clocks need not
        agree.
        """
        first, end = self.path.stat().st_mtime_ns, time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE_SECONDS / 4))
            if self.path.stat().st_mtime_ns != first:
                return True
        return False

    def _refusal(self) -> UserError:
        return UserError(f"{self.path.parent} is being trained by {name_of(read_holder(self.path))}")

    def _write(self, holder: dict[str, Any] | None) -> None:
        """In place: the flock belongs to this very file."""
        text = (json.dumps(holder) + "\n" if holder else "").encode()
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, text, 0)
            os.ftruncate(descriptor, len(text))
        finally:
            os.close(descriptor)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                holder = read_holder(self.path)
                if holder and holder != self.me:
                    self.lost = True
                    return
                os.utime(self.path)

    def release(self) -> None:
        """Give the experiment up; a holder that has lost it leaves the file to its new one."""
        self._released.set()
        self._thread.join()
        if self.is_mine():
            with suppress(OSError):
                self._write(None)
        self._file.close()
