"""A checkpoint in whatever form it is kept: a file, ours or Lightning's, or the training library's folder.

state = open_checkpoint(path)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optim import library_folder
from optim.checkpoint import load_checkpoint
from optim.coalescence import public


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint; path: of a file, a folder's is its model.safetensors. Raises UserError."""
    if library_folder.is_file(path):
        return library_folder.read(path.parent)
    if public.is_file(path):
        return public.read(path)
    return load_checkpoint(path)
