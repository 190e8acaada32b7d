"""torchrun for jobs: it survives the signals that a cluster sends, and ends with the exit code of its
workers.

    python -m distributed.torchrun --standalone --nproc_per_node 2 main.py ...

torchrun itself dies of SIGUSR1 and leaves its workers behind, kills them 30 s after a SIGTERM or a closed
terminal, takes back what nohup has ignored, and ends with 1 whatever happened. Here the workers decide:
signals are passed on to them, who have sessions of their own and see no terminal, and those that come before
they are ready are kept for them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from errors import BAD_INPUT

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# held back until a worker has handlers
FOR_WORKERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
OF_THE_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # these end a worker that has none


def exit_code(error: ChildFailedError) -> int:
    """Of the failed workers: 2 if one of them reported bad input, else that of the first; a signal is 128
    + its number.
    """
    codes = [failure.exitcode for failure in error.failures.values()]
    code = BAD_INPUT if BAD_INPUT in codes else error.get_first_failure()[1].exitcode
    return code if code > 0 else 128 - code


def workers() -> list[int]:
    """Processes that this one has started, whichever of its threads did."""
    found: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found += map(int, task.read_text().split())
    return found


def pass_on(signum: int) -> bool:
    """Send a signal to all workers; False where there are none."""
    found = workers()
    for worker in found:
        with suppress(ProcessLookupError):
            os.kill(worker, signum)
    return bool(found)


def _of_the_terminal(signum: int, frame: FrameType | None) -> None:
    if not pass_on(signum):
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


def _pass_on_for_ever() -> None:
    while True:
        pass_on(signal.sigwait(FOR_WORKERS))


def take_signals() -> None:
    """Call before torch is loaded: its threads, and all workers, must block the signals as this one does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FOR_WORKERS)
    threading.Thread(target=_pass_on_for_ever, name="signals", daemon=True).start()
    for signum in OF_THE_TERMINAL:
        # as nohup has it, which workers inherit
        if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _of_the_terminal)


def main(argv: Sequence[str]) -> int:
    take_signals()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(["--signals-to-handle", "SIGQUIT", *argv]))
    except ChildFailedError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
