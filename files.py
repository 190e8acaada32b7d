"""Files that are never half written. Imports no room, like errors.py."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errors import UserError

STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)
# of a network's storage: worth another try, so no bad input
TRANSIENT_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a mount that knows no fsync
# a summary with a curve of a million points; a larger file would fill the memory before it is found to be
# none
LARGEST_JSON_BYTES = 1 << 27


def is_of_a_place(error: OSError) -> bool:
    """Whether an error is that of a file or disk, which is reported in one line, and not of the program."""
    return error.filename is not None or error.errno in STORAGE_FAULTS


def sync(descriptor: int) -> None:
    """fsync, where the file system has it: some mounts have none for folders, or none at all."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def sync_path(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    sync_path(folder)


def is_kept_open(path: Path) -> bool:
    """Whether a name is that of a removed file which NFS or FUSE keeps until it is closed."""
    return path.name.startswith((".nfs", ".fuse_hidden"))


def remove_folder(folder: Path) -> None:
    """Remove a folder with everything in it.

    Where the mount keeps removed files that are open, the folder stays, with only those.
    """
    errors: list[OSError] = []

    def note(function: object, name: str, error: Any) -> None:
        errors.append(error[1])

    shutil.rmtree(folder, onerror=note)
    if errors and not all(path.is_dir() or is_kept_open(path) for path in folder.rglob("*")):
        raise errors[0]


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then sync it and rename it over `path`; on failure,
    remove it.

    An OSError names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync_path(temporary)
        os.replace(temporary, path)
    except OSError as error:
        # a failed write names no file, and nobody asked for the temporary one
        if error.errno is not None and str(error.filename) in ("None", str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the content of a file as a whole."""
    raw = content.encode() if isinstance(content, str) else content
    replace_atomically(path, lambda temporary: temporary.write_bytes(raw))


def save_array(path: Path, array: Any) -> None:
    """Replace a .npy file as a whole. NumPy's own way into a file loses why a disk has refused it."""
    import numpy as np

    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_atomically(path, content.getvalue())


def reserve(descriptor: int, size: int, name: Path) -> None:
    """Have the disk keep room for a file that will be mapped: where that is full, this is an OSError about
    `name`, and a write through the map would kill the process. Some systems cannot, macOS among them.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            error.filename = str(name)
            raise


def fill_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` fill a temporary folder beside `folder`, which is new or empty, then rename it; on failure,
    remove it.

    An OSError names `folder`.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        sync_folder(temporary)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(folder)  # nobody asked for the temporary one
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON, which every reader accepts: infinities and NaN become null. Raises TypeError."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, value: Any) -> None:
    """Replace a file by readable, strict JSON."""
    write_atomically(path, json_text(value, indent=2) + "\n")


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError for one that is damaged or larger than any that this
    project writes.
    """
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


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, refusal: str, say: Callable[[str], object] = print) -> Iterator[None]:
    """While a file, which is made, is locked. Raises UserError with the refusal where another process has
    locked it; does nothing on a file system without locks.

    A job that SLURM has started again waits instead, and says so: of a node that is lost, the job's processes
    may go on for a while.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
                raise UserError(refusal) from None
            say(f"{refusal}; this job was started again, and waits until that ends")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def try_to_write(folder: Path) -> None:
    """Make a folder if it is missing, and a file in it, which is removed at once. Raises OSError where that
    fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".write_test.{os.getpid()}.tmp"
    probe.touch()
    probe.unlink()
