"""How a flag is declared: `Flag`, its scopes, and the conversions of its text.

`scope` says what a flag is, for everything that compares settings (naming.py, identity.py, the resume check,
evaluations, the sweep, the report):

    IDENTITY    makes it another training: part of the experiment's path, and refused on a resume with another
                value
    SCHEDULE    may change within an experiment by extension only; asking for more steps must find the
                existing experiment (and be refused without `--extend`), not open a second folder beside it
    EVALUATION  changes what an evaluation measures, and nothing that is trained
    PLACE       changes neither: where, how and how often
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

IDENTITY, SCHEDULE, EVALUATION, PLACE = "identity", "schedule", "evaluation", "place"
PATH, PATH_OR_NAME = "path", "path or name"


@dataclass(frozen=True)
class Flag:
    """A setting of commands and config files. type: makes a value of text. scope: what it changes. optional:
    takes None too, as every flag does whose default it is. names: PATH where its value is a file or folder,
    PATH_OR_NAME where it may be one: a job that runs from elsewhere is given it in full (iridis/paths.py).
    """

    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None  # inclusive bounds for numbers
    high: float | None = None
    many: bool = False  # takes a list of values
    scope: str = IDENTITY
    short_forms: Mapping[str, str] = field(
        default_factory=dict, hash=False
    )  # short value -> the value that it stands for
    optional: bool = False
    repeats: bool = False  # of `many`: given twice, the values of both count
    names: str = ""

    @property
    def takes_none(self) -> bool:
        return self.optional or self.default is None


def boolean(text: str) -> bool:
    """`true/false`, `yes/no`, `on/off`, `1/0`; anything else raises ValueError."""
    word = text.lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError(text)


def dataset_or_mixture(text: str) -> str:
    """A dataset, or NAME=WEIGHT,NAME=WEIGHT,..., or a JSON object of names and weights."""
    return text


def dtype_name(text: str) -> str:
    """`torch.bfloat16`, as old command lines write it, is `bfloat16`."""
    return text.removeprefix("torch.")


def prose(text: str) -> str:
    """Any text, with line breaks too, and "none" is a text. Raises ValueError where it is no UTF-8."""
    text.encode()
    return text


def switch(name: str, help: str, scope: str = IDENTITY) -> Flag:
    return Flag(name, boolean, False, help, scope=scope)
