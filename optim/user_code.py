"""Objects of the user's own that a flag names by MODULE:NAME."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from config.values import nearest
from errors import UserError


def failed(flag: str, name: str, what: str, error: BaseException) -> UserError:
    """One line about what the user's code has raised."""
    lines = str(error).splitlines() or [""]
    return UserError(f"{flag} {name}: {what} fails: {type(error).__name__}: {lines[0]}")


def named_object(flag: str, name: str, kind: type | None = None) -> Any:
    """What MODULE:NAME is, of a module on Python's path or in the working folder. Raises UserError with one
    line. kind: whose objects are proposed where the name is wrong (None: all functions).
    """
    module_name, _, object_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{flag} {name}: there is no module {error.name}") from None
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise failed(flag, name, f"importing {module_name}", error) from None
    found = getattr(module, object_name, None)
    if found is None:
        words = [word for word, value in vars(module).items() if _is(value, kind)]
        raise UserError(
            f"{flag} {name}: {module_name} has no {object_name}{nearest(object_name, words)}"
        ) from None
    return found


def _is(value: Any, kind: type | None) -> bool:
    return callable(value) if kind is None else isinstance(value, kind)
