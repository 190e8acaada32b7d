"""Checkpoints by name: those in the public code's cache, and experiments. Needs no torch.

find("broad")           # ~/.cache/cxt/checkpoints/broad/broad_epoch=1-step=5280.ckpt
"""

from __future__ import annotations

import os
from pathlib import Path

from errors import UserError
from optim.coalescence.cache import cache_folder, cached
from optim.restore import find_checkpoint


def find(given: str, flag: str = "--checkpoint") -> Path:
    """The checkpoint file that a path, a name in the cache, or an experiment's name means.

    Raises UserError.
    """
    path = None if os.path.exists(given) else cached(given)
    if path is not None:
        return path
    try:
        return find_checkpoint(given, flag)
    except UserError as error:
        raise UserError(f"{error}; nor is it in {cache_folder()}") from None
