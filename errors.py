"""Errors that the user can mend, and the exit codes that all programs share. Imported by every room; imports none."""

STOPPED = 83  # exit code of a run that stopped cleanly with work left
BAD_INPUT = 2  # exit code of a run that the user must mend something for


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
