"""Command lines of the report and the figures: some paths, then flags; what is wrong is reported in a line
each, exit 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.parse import parse, stop
from config.schema import Flag

LABELLED = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)=(.+)")  # as iridis/lib.sh has it


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths and flag words; each flag here takes one value."""
    paths: list[str] = []
    flags: list[str] = []
    waiting = False
    for word in words:
        if word in ("-h", "--help"):
            return [], [word]
        is_flag = word.startswith("--")
        (flags if is_flag or waiting else paths).append(word)
        waiting = is_flag and "=" not in word
    return paths, flags


def labelled(words: Sequence[str]) -> tuple[list[str], dict[Path, str]]:
    """Paths of words of which some are LABEL=PATH, and the label of each such path.

    What is there as a path is one.
    """
    labels = {}
    paths = []
    for word in words:
        match = None if os.path.exists(word) else LABELLED.fullmatch(word)
        if match:
            labels[Path(match[2])] = match[1]
        paths.append(match[2] if match else word)
    return paths, labels


def paths_and_flags(
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    flags: Sequence[Flag],
    paths: str,
    needed: bool = True,
    may_be_names: bool = False,
    labels: dict[Path, str] | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """Paths and the value of every flag. Exits 2 on bad ones.

    paths: what they are, for the help. needed: at least one. may_be_names: of experiments, which the caller
    looks for. labels: paths may be LABEL=PATH; it is filled with the labels.
    """
    files, words = _split(sys.argv[1:] if argv is None else argv)
    if labels is not None:
        files, found = labelled(files)
        labels.update(found)
    given, wrong = parse(words, prog=f"{prog} {paths}", description=description, groups={"output": flags})
    problems: list[str] = [*wrong]
    if needed and not files:
        problems.append(f"give {paths.rstrip('.')}, at least one")
    problems += [f"--{name} needs a value" for name, value in given.items() if value in (None, "")]
    if not may_be_names:
        # False, no error, for names that no file can have
        problems += [f"{file}: no such file or folder" for file in files if not os.path.exists(file)]
    if problems:
        stop(prog, problems)
    return [Path(file) for file in files], {**{flag.name: flag.default for flag in flags}, **given}
