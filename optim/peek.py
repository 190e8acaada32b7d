"""The numbers and texts of a checkpoint, without its tensors and without torch: reads a few kilobytes of a
file of gigabytes.

    peek(path)["itr"]           # the number of steps that a checkpoint holds, whatever its name
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from optim import library_folder
from optim.names import FINAL, numbered, step_of

LARGEST_RECORD_BYTES = 1 << 26  # of names, numbers and references to tensors


class _Nothing:
    """Stands for every object that is not read; nothing of the file's is ever called."""

    def __init__(self, *unused: Any, **also_unused: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *unused: Any, **also_unused: Any) -> _Nothing:
        return self


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers and texts; every class and function that a file asks for is `_Nothing`."""

    def find_class(self, module: str, name: str) -> Any:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Nothing

    def persistent_load(self, reference: Any) -> None:
        """Of a tensor's storage."""


def peek(path: Path) -> dict[str, Any] | None:
    """The state in a checkpoint with `_Nothing` for each tensor; None for a file that holds no readable one.

    Checksums of other records are not compared: optim.checkpoint.damage says whether a file is intact.
    """
    if library_folder.is_file(path):
        return library_folder.peek(path.parent)
    try:
        with zipfile.ZipFile(path) as archive:
            records = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if len(records) != 1 or records[0].file_size > LARGEST_RECORD_BYTES:
                return None
            state = _Unpickler(io.BytesIO(archive.read(records[0]))).load()
    except Exception:  # whatever a damaged or foreign file makes of the two readers
        return None
    return state if isinstance(state, dict) else None


def step_in(path: Path) -> int | None:
    """The number of steps that a checkpoint holds (`itr`), None where it does not say."""
    step = (peek(path) or {}).get("itr")
    return step if isinstance(step, int) else None


def age(path: Path) -> tuple[float, float]:
    """Steps that a checkpoint holds, then those that its name says; ckpt.pt goes before all that are
    alike.
    """
    named = step_of(path)
    by_name = math.inf if named is None else named
    held = step_in(path)
    return (by_name if held is None else held), by_name


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder, intact or not."""
    final = [folder / FINAL] if os.path.lexists(folder / FINAL) else []  # a link to nowhere is reported, too
    return sorted([*final, *numbered(folder)], key=age, reverse=True)
