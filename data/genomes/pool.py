"""Jobs in worker processes, and how long they will take."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from itertools import islice
from typing import TypeVar

from errors import UserError
from processes import start_worker

J = TypeVar("J")
R = TypeVar("R")
AHEAD = 4  # jobs handed to the workers, times their number


def results_of(
    work: Callable[[J], R], jobs: Sequence[J], processes: int, flag: str
) -> Generator[tuple[J, R]]:
    """Each job with what `work` returns of it, in the order in which they end; one process works in this one.

    flag: the number of processes is given by it. Where it is closed before its end, what has not begun is
    left out. Raises UserError where a process was killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        for job in jobs:
            yield job, work(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, start_worker, (os.getpid(),)) as pool:
        remaining = iter(jobs)
        waiting: dict[Future[R], J] = {}
        try:
            while True:
                for job in islice(remaining, AHEAD * processes - len(waiting)):
                    waiting[pool.submit(work, job)] = job
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            raise UserError(
                f"a process was killed (out of memory?): what is done stays done; try again with fewer {flag}"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def time_left(seconds: float, done: int, total: int) -> str:
    """Of what takes as long a job as the first ones took, as hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds / done * (total - done))))
