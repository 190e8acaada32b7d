"""Processes that do not outlive the one that started them, what they are, and which code they run."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from files import read_json

# of code that --pin-code copied: what `code_facts` said of the original
SNAPSHOT = Path(__file__).resolve().parent / "revision.json"
GIT_SECONDS = 10  # patience with a checkout on slow storage
_PR_SET_PDEATHSIG = 1


def die_with(parent: int, signum: int = signal.SIGKILL) -> None:
    """Have this process killed, or sent another signal, when `parent`, which started it, is gone.

    Does nothing where the kernel cannot.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def start_worker(parent: int) -> None:
    """In a new worker of a pool, which ends with the process `parent`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    die_with(parent)


def is_running(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def peak_kib() -> int:
    """Largest resident memory of this process so far. macOS counts it in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def code_facts() -> dict[str, Any]:
    """Which code runs: `revision`, of git, with `+changes` where tracked files differ from it; `dirty`,
    whether they do; and `changes`, a hash of the differences. All None outside a checkout.
    """

    def git(*words: str) -> bytes:
        command = ["git", "-C", str(SNAPSHOT.parent), *words]
        return subprocess.run(
            command, capture_output=True, timeout=GIT_SECONDS, check=True, stdin=subprocess.DEVNULL
        ).stdout

    pinned = read_json(SNAPSHOT)
    if pinned is not None:
        return pinned
    try:
        head, changes = git("rev-parse", "HEAD").decode().strip(), git("diff", "--no-ext-diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "dirty": None, "changes": None}
    if not changes:
        return {"revision": head, "dirty": False, "changes": None}
    return {"revision": f"{head}+changes", "dirty": True, "changes": hashlib.sha256(changes).hexdigest()[:8]}


def torch_change(before: str, now: str) -> str | None:
    """In words, that a training goes on under another version or build of torch; None where it does not."""
    if before == now:
        return None
    return (
        f"torch has changed since the last job: {before} then, {now} now; the same bits as those of an"
        " unbroken training are promised under one version only"
    )


def code_change(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In words, how the code of a job differs from that of the one before, both as `code_facts`; None where
    it does not, as far as is known: rows from before there were hashes have the revision alone.
    """
    known = [
        name
        for name in ("revision", "changes")
        if before.get("revision") and now.get("revision") and name in before
    ]
    if all(before[name] == now.get(name) for name in known):
        return None
    then, here = (
        f"{each['revision'][:12]}{'+changes' * ('+' in each['revision'])} {each.get('changes') or ''}".strip()
        for each in (before, now)
    )
    return (
        f"the code has changed since the last job: {then} then, {here} now; --pin-code keeps a chain on one"
        " version"
    )
