"""Programs: command lines of those whose flags are their own, and how all of them end, with a line for each
problem.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from config.values import nearest
from errors import INTERRUPTED, OwnError, UserError, missing_package
from files import TRANSIENT_ERRORS, is_of_a_place

SILENT_SECONDS = 10.0  # for the first process to report what is wrong


class Arguments(argparse.ArgumentParser):
    """Raises UserError for a wrong command line, where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def parsed(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """As parse_args; the line about an unknown flag names the nearest one."""
        given, extras = self.parse_known_args(argv)
        lines, is_value = [], False  # words after an unknown flag are taken for its values
        for word in extras:
            if word.startswith("-"):
                flag, is_value = word.split("=", 1)[0], True
                lines.append(f"unknown flag {flag}{nearest(flag, self._option_string_actions)}")
            elif not is_value:
                lines.append(f"unexpected argument {word!r}")
        if lines:
            raise UserError("\n".join(lines))
        return given


def with_underscores(words: Sequence[str]) -> list[str]:
    """Flags in the spelling of this suite: --num-samples is --num_samples."""
    changed = []
    for word in words:
        name, equals, value = word.partition("=")
        changed.append(
            name.replace("-", "_").replace("__", "--", 1) + equals + value if name[:2] == "--" else word
        )
    return changed


def stop(prog: str, problems: Sequence[str], code: int = 2, alone: bool = False) -> NoReturn:
    """Print one line a problem and exit; on the first process only, unless only this one has the problem.

    The others end after it: when the first process ends, torchrun terminates the rest, and the first is the
    one that prints.
    """
    if alone or os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1":
        for problem in dict.fromkeys(problems):
            print(f"{prog}: error: {problem}", file=sys.stderr)
    else:
        for signum in (signal.SIGTERM, signal.SIGINT):  # which may be ignored or held back until here
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        time.sleep(SILENT_SECONDS)
    raise SystemExit(code)


def guarded(prog: str, work: Callable[[], int], worded: Callable[[str], str] = str) -> int:
    """Exit code of `work`; each problem that the user can fix gets a line, as worded, and exit code 2."""
    try:
        code = work()
        print(end="", flush=True)  # what is still to be printed may meet the same faults
        return code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        stop(prog, worded(str(error)).splitlines(), alone=isinstance(error, OwnError))
    except OSError as error:
        if not is_of_a_place(error):
            raise
        stop(
            prog,
            [f"{error.filename or 'writing'}: {error.strerror}"],
            1 if error.errno in TRANSIENT_ERRORS else 2,
        )
    except ModuleNotFoundError as error:
        line = missing_package(error)
        if line is None:
            raise
        stop(prog, [line])
    except KeyboardInterrupt:
        return INTERRUPTED
