"""The one exception that means "the user can mend this"; it stands below every room."""


STOPPED = 83  # exit code of a run that stopped cleanly with work left


class UserError(Exception):
    """Bad input or environment: entry points print each line of it and exit with code 2, no traceback."""


class OwnError(UserError):
    """Of several processes, this one alone has met it, so it tells it, whatever its rank."""
