"""The cache of the public code's checkpoints. Needs no torch.

cached("broad")         # ~/.cache/cxt/checkpoints/broad/broad_epoch=1-step=5280.ckpt
"""

from __future__ import annotations

import os
from pathlib import Path

from errors import UserError

CACHE = "CXT_CHECKPOINT_CACHE"  # environment variable
SUFFIXES = (".ckpt", ".pt")


def cache_folder() -> Path:
    given = os.environ.get(CACHE)
    return Path(given) if given else Path.home() / ".cache" / "cxt" / "checkpoints"


def cached(name: str) -> Path | None:
    """The checkpoint of a name in the cache: NAME/FILE, or NAME and a suffix; None where there is none.

    Raises UserError where there are several.
    """
    if "/" in name or name in ("", ".", ".."):
        return None
    folder = cache_folder()
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    if (folder / name).is_dir():
        found += sorted((folder / name).iterdir())
    files = [path for path in found if path.suffix in SUFFIXES and path.is_file()]
    if len(files) > 1:
        raise UserError(f"{name}: {folder} has several such checkpoints: {', '.join(map(str, files))}")
    return files[0] if files else None
