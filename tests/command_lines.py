"""Command lines that are refused, and files for --config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import config


def code_of(main: Callable[[list[str]], int], words: list[str]) -> int:
    """The exit code of a program."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> list[str]:
    """What is printed about a command line that is refused."""
    with pytest.raises(SystemExit) as stopped:
        config.parse_args([str(word) for word in argv])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()


def config_file(folder: Path, content: Any) -> Path:
    """A file of that text, or of that object as JSON."""
    path = folder / "settings.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path
