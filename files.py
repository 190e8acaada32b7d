"""Files that are never half written; stands below every room, like errors.py."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from errors import UserError

STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)
PASSING_FAULTS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)  # of a network's storage: worth another try, so no bad input
LARGEST_JSON_BYTES = 1 << 27  # a summary with a curve of a million points; a larger file would fill the memory before it is found to be none


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then sync it and rename it over `path`; on failure, remove it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the content of a file as a whole."""
    raw = content.encode() if isinstance(content, str) else content
    replace_atomically(path, lambda temporary: temporary.write_bytes(raw))


def write_json(path: Path, value: Any) -> None:
    """Replace a file by readable JSON."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def load_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError for one that is damaged or larger than any that this project writes."""
    size = path.stat().st_size
    if size > LARGEST_JSON_BYTES:
        raise ValueError(f"{size:,} bytes are too many")
    try:
        return json.loads(path.read_text())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file. Raises UserError for a damaged one."""
    try:
        value = load_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def try_to_write(folder: Path) -> None:
    """Make a folder where it is missing, and a file in it that goes at once. Raises OSError where that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".write_test.{os.getpid()}.tmp"
    probe.touch()
    probe.unlink()
