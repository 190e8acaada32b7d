"""Whether programs that open a checkpoint will take some flags, asked before a job is queued for them.

python -m iridis.check_flags eval get_router_weights -- --eval_sample_size 4096
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from config.parse import guarded, parse, stop
from errors import UserError


def main(argv: Sequence[str]) -> int:
    """Returns 0; exits 2 with a line for each flag that one of the programs refuses. A program that does not
    list its flags is not asked.
    """
    programs, flags = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    if {"-h", "--help"} & set(flags):
        raise UserError(f"--help is nothing to queue: python {programs[0]}.py --help")
    for name in programs:
        own = getattr(import_module(name), "OWN_FLAGS", None)
        _, problems = parse(flags, prog=f"{name}.py", description="", extra=own) if own else ({}, [])
        if problems:
            stop(f"{name}.py", problems)
    return 0


if __name__ == "__main__":
    sys.exit(guarded("iridis.check_flags", lambda: main(sys.argv[1:])))
