"""Errors that the user can fix, and the exit codes that all programs share. Imported by every room;
imports none.
"""

import sys
from pathlib import Path
from types import TracebackType
from typing import Any

STOPPED = 83  # exit code of a run that stopped cleanly with work left
INTERRUPTED = 130  # exit code after Ctrl-C
BAD_INPUT = 2  # exit code where the user must fix something
REQUIRED = "-r requirements.txt -c constraints.txt"
OF_GENOMES = "-r requirements-genomes.txt -c constraints.txt"
# optional packages -> what pip installs
OPTIONAL = {"msprime": OF_GENOMES, "tskit": OF_GENOMES, "stdpopsim": "stdpopsim"}


class UserError(Exception):
    """Bad input or environment: entry points print each line of it and exit with code 2, no traceback.

    kind: what a training that ends with it is called in outcome.json (optim/outcome.py).
    """

    kind = "refused"


class BadNumbers(UserError):
    """A loss, a gradient or weights that are not finite, or beyond the limit that the user set."""

    kind = "bad numbers"


class Replaced(UserError):
    """Another process has taken the experiment over: this one writes nothing more into it."""

    kind = "replaced"


class OwnError(UserError):
    """Raised by one process only; reported by it even if it is not rank 0."""


def missing_package(error: BaseException | None) -> str | None:
    """A line about a package that is not installed, None for any other error."""
    name = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    root = Path(__file__).parent
    if (
        not name
        or name in sys.stdlib_module_names
        or (root / name).is_dir()
        or (root / f"{name}.py").is_file()
    ):
        return None
    environment = "source .venv/bin/activate, or " if (root / ".venv" / "bin" / "activate").is_file() else ""
    return f"{name} is not installed: {environment}pip install {OPTIONAL.get(name, REQUIRED)}"


def _starting() -> str | None:
    """The program of this repository that this process runs, as its lines call it, or None."""
    root, main = Path(__file__).parent, sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), Path(getattr(main, "__file__", None) or "").absolute()
    if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv:  # while Python looks for the program
        name = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    elif spec is not None:
        name = spec.name.removesuffix(".__main__")
    else:
        return file.name if file.parent == root and file.is_file() else None
    return name if (root / name.split(".")[0]).is_dir() else None


def report_starts() -> None:
    """One line where a program cannot start, as config.guarded does later: exit code 2 for a missing package,
    130 for Ctrl-C. Other errors, and other processes than our programs, are left as they are.
    """
    program = _starting()
    if program is None:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
        is_interrupt = issubclass(kind, KeyboardInterrupt)
        line = "interrupted" if is_interrupt else missing_package(error)
        if line is None:
            return sys.__excepthook__(kind, error, trace)
        print(f"{program}: error: {line}", file=sys.stderr)
        raise SystemExit(INTERRUPTED if is_interrupt else BAD_INPUT)

    sys.excepthook = hook


report_starts()
