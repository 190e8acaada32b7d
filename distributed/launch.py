"""What a process knows of its launcher before torch is there."""

from __future__ import annotations

import os

from errors import UserError
from processes import die_with


def launched_world_size() -> int:
    """Number of processes that torchrun started, 1 without it. Raises UserError where the environment makes no sense."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdigit() or int(size) < 1 or (int(size) > 1 and "MASTER_ADDR" not in os.environ):
        raise UserError(f"WORLD_SIZE={size!r} in the environment, but torchrun did not start this process; unset it")
    return int(size)


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def die_with_launcher() -> None:
    """Be killed when torchrun is.

    Its workers have sessions of their own: after a SIGKILL of torchrun they would train on beside the run that takes
    their place, or wait for a rendezvous that is gone.
    """
    if under_torchrun():
        die_with(os.getppid())


def is_main_process() -> bool:
    """Whether this is the process that speaks for all of a run."""
    return os.environ.get("RANK", "0") == "0"
