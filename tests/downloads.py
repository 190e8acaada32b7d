"""Downloads from the tests' own server: what is fetched, and where it lies."""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import pytest

from data import download
from data.tokenize import RAW_OWT2
from tests.command_lines import code_of

MIB = 1 << 20
BODY = random.Random(7).randbytes(3 * MIB + 12345)
SUM = hashlib.sha256(BODY).hexdigest()
TAR = f"/{RAW_OWT2}"
HUB_TAR = f"/datasets/{download.HUB_REPOSITORY}/resolve/main/{RAW_OWT2}"


def target(root: Path) -> Path:
    return root / "openwebtext2" / RAW_OWT2


def part(root: Path) -> Path:
    return target(root).with_name(f"{RAW_OWT2}.part")


def call(root: Path, *words: str) -> int:
    return code_of(download.main, [*words, "--data_dir", str(root)])


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "data.download", *words, "--data_dir", str(root)]


def left(root: Path) -> list[str]:
    """Names of the files in the dataset's folder."""
    return sorted(path.name for path in target(root).parent.rglob("*") if path.is_file())


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("data.download: error: ")
    return lines[0]


def put(root: Path, content: bytes = BODY) -> Path:
    """A finished download as `--full --source` leaves it."""
    folder = root / "source"
    folder.mkdir()
    (folder / RAW_OWT2).write_bytes(content)
    assert call(root, "--full", "--source", str(folder)) == 0
    return target(root)
