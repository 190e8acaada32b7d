"""Losses of single windows beside an evaluation's summary, so that two models can be compared on each window.

    save_windows(path, WindowLosses(chosen, losses, accuracies, documents))
    windows = read_windows(path)                    # raises UserError

A .npz of plain arrays; it needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from files import replace_atomically


@dataclass(frozen=True)
class WindowLosses:
    """windows: (N,) int64, their indices in the split, increasing. losses (nats a token), accuracies: (N,)
    float64, means of each window.

    documents: (N,) int64, the document of each window; None where that is not known.
    """

    windows: NDArray[np.int64]
    losses: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    documents: NDArray[np.int64] | None


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write a .npz as a whole. Raises UserError where it cannot be written."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # savez would give a path another name
            np.savez_compressed(file, **arrays)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, write)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def save_windows(path: Path, found: WindowLosses) -> None:
    """Raises UserError where it cannot be written."""
    known = {} if found.documents is None else {"documents": found.documents}
    save_arrays(path, windows=found.windows, losses=found.losses, accuracies=found.accuracies, **known)


def read_windows(path: Path) -> WindowLosses:
    """Raises UserError where there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            windows = np.asarray(file["windows"], dtype=np.int64)
            losses, accuracies = (
                np.asarray(file[name], dtype=np.float64) for name in ("losses", "accuracies")
            )
            documents = np.asarray(file["documents"], dtype=np.int64) if "documents" in file.files else None
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there: evaluate the checkpoint again (eval.py keeps the losses of its windows)"
        ) from None
    except Exception as error:  # whatever a damaged file makes of numpy's reader
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:80]}): evaluate the checkpoint again"
        ) from None
    is_sound = (
        windows.ndim == 1
        and windows.size
        and bool((np.diff(windows) > 0).all())
        and bool(np.isfinite(losses).all())
    )
    has_documents = documents is None or documents.shape == windows.shape
    if not is_sound or not has_documents or not losses.shape == accuracies.shape == windows.shape:
        raise UserError(f"{path} is damaged: evaluate the checkpoint again")
    return WindowLosses(windows, losses, accuracies, documents)
