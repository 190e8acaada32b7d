"""torchrun for jobs: it survives the signals that a cluster sends, and ends with the exit code of its workers.

    python -m distributed.torchrun --standalone --nproc_per_node 2 main.py ...

torchrun itself dies of SIGUSR1 and leaves its workers behind, kills them 30 s after a SIGTERM, and ends with 1 whatever
happened. Here those signals are left to the workers, which get SIGTERM from SLURM as it does, and to the job script,
which stops them by a file.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from errors import BAD_INPUT

LEFT_TO_WORKERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def exit_code(error: ChildFailedError) -> int:
    """Of the failed workers: 2 if one of them reported bad input, else that of the first; a signal is 128 + its number."""
    codes = [failure.exitcode for failure in error.failures.values()]
    code = BAD_INPUT if BAD_INPUT in codes else error.get_first_failure()[1].exitcode
    return code if code > 0 else 128 - code


def main(argv: Sequence[str]) -> int:
    for number in LEFT_TO_WORKERS:
        signal.signal(number, signal.SIG_IGN)  # a worker inherits this until it has handlers of its own
    try:
        run.run(run.parse_args(["--signals-to-handle", "SIGHUP,SIGQUIT", *argv]))
    except ChildFailedError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
