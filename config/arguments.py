"""Command lines of programs whose flags are their own: argparse, with problems reported in a line each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from config.values import nearest
from errors import UserError


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
