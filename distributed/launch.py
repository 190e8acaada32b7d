"""What a process knows of its launcher before torch is there, and how it ends beside others."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from errors import INTERRUPTED, OwnError
from processes import die_with


def launched_world_size() -> int:
    """Number of processes that torchrun started, 1 without it.

    Raises OwnError where the environment has only some of a launcher's variables. Left over in a shell or a
    notebook, they would make this process a silent second one, or one that waits for others.
    """
    given = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ}
    size, rank, local_rank = (
        given.get(name, default)
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    numbers = all(number.isascii() and number.isdigit() for number in (size, rank, local_rank))
    lacking = [
        name
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if not os.environ.get(name)
    ]
    if not numbers or not max(int(rank), int(local_rank)) < int(size) or (int(size) > 1 and lacking):
        text = ", ".join(f"{name}={value!r}" for name, value in given.items())
        rest = f" without {', '.join(lacking)}" if lacking else ""
        raise OwnError(
            f"{text} in the environment{rest}: torchrun did not start this process; unset {' '.join(given)}"
        )
    return int(size)


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def die_with_launcher() -> None:
    """Be killed when torchrun is. Its workers have sessions of their own: after a SIGKILL of torchrun they
    would keep training beside the run that replaces them, or wait for a rendezvous that is gone.
    """
    if under_torchrun():
        die_with(os.getppid())


def is_main_process() -> bool:
    """Whether this is the process that speaks for all of a run."""
    return os.environ.get("RANK", "0") == "0"


def run_and_end(main: Callable[[], int]) -> NoReturn:
    """Run a program and end the process with its exit code.

    One of several processes ends without cleaning up: the interpreter would destroy the threads of torch's
    process groups while they run, and sometimes abort (`terminate called without an active exception`), which
    the launcher takes for a failure.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(main())
    code: object = 1
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        sys.excepthook(*sys.exc_info())
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
