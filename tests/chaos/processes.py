"""Looks into running trainings: their workers, what they write, and when."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE = 0x8, 0x80, 0x100
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


def descendants(pid: int) -> list[int]:
    """Processes below one, nearest first."""
    try:
        children = [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return children + [below for child in children for below in descendants(child)]


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """Processes that torchrun has started, in order of rank; waits until each runs main.py.

    Empty where it has ended, or is ending.
    """
    end = time.monotonic() + 30
    while time.monotonic() < end and launcher.poll() is None:
        found = [pid for pid in descendants(launcher.pid) if is_training(pid)]
        if len(found) == 2:
            return sorted(found)
        time.sleep(0.02)
    return []


def is_training(pid: int) -> bool:
    try:
        return b"\0-u\0main.py\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, f"{pids} are still there"
        time.sleep(0.01)


class FolderWatch:
    """What happens in a folder, as the kernel tells it: soon enough to be met in the act."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0
        assert (
            self._libc.inotify_add_watch(
                self._descriptor, os.fsencode(folder), IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE
            )
            >= 0
        )

    def __enter__(self) -> FolderWatch:
        return self

    def __exit__(self, *unused: object) -> None:
        os.close(self._descriptor)

    def wait(self, mask: int, part_of_name: str, meanwhile: Callable[[], bool]) -> bool:
        """Until this happens to a file of such a name; False where `meanwhile` is no longer true before."""
        while meanwhile():
            if not select.select([self._descriptor], [], [], 0.05)[0]:
                continue
            raw = os.read(self._descriptor, 1 << 16)
            while raw:
                _, what, _, length = EVENT.unpack_from(raw)
                name = raw[EVENT.size : EVENT.size + length].rstrip(b"\0").decode()
                if what & mask and part_of_name in name:
                    return True
                raw = raw[EVENT.size + length :]
        return False
