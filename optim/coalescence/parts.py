"""Long drawing that may be interrupted: batches that are done, and how far it is."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from files import json_text, reserve, save_array

Tokens = NDArray[np.uint16]
PREFIX = ".parts_"


class Parts:
    """Batches that are done, in a folder of their own, so that an interrupted call goes on where it was."""

    def __init__(self, place: Path, facts: Any) -> None:
        """place: the folder of the results. facts: JSON values that tell these draws from others."""
        key = hashlib.sha256(json_text(facts).encode()).hexdigest()[:12]
        self.folder = place / f"{PREFIX}{key}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, first: int) -> Path:
        return self.folder / f"tokens_{first:08d}.npy"

    def load(self, first: int, shape: tuple[int, ...]) -> Tokens | None:
        """Of the batch that begins with a sequence; None where it is not done, or damaged."""
        try:
            found = np.load(self._path(first), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found if found.shape == shape and found.dtype == np.uint16 else None

    def save(self, first: int, tokens: Tokens) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)  # another call into the same place may have ended
        save_array(self._path(first), tokens)

    def remove(self) -> None:
        """These, and those of other draws into the same place."""
        for folder in self.folder.parent.glob(f"{PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)


def on_disk(shape: tuple[int, ...], folder: Path) -> NDArray[np.float64]:
    """An array in a file without a name, which need not fit into memory and is gone with this process."""
    with tempfile.TemporaryFile(dir=folder) as file:
        size = 8 * math.prod(shape)
        file.truncate(size)
        reserve(file.fileno(), size, folder)
        return np.memmap(file, np.float64, "r+", shape=shape)


class Progress:
    """A line on stderr every few seconds. total: rows times windows."""

    EVERY = 10.0

    def __init__(self, total: int) -> None:
        self.total, self.done, self.begin, self.said = total, 0, time.monotonic(), 0.0

    def advanced(self, tokens: int) -> None:
        """So many more are drawn."""
        self.done += tokens
        now = time.monotonic() - self.begin
        if now - self.said >= self.EVERY:
            self.said = now
            print(
                f"{100 * self.done / self.total:5.1f}% drawn, {self.done / now:,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
