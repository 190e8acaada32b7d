"""Built-in corpora are made when they are first asked for; any other dataset must have been prepared."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from data.apart import make_apart
from data.bins import dataset_folder, is_prepared, refuse_half
from data.built_in import BUILT_IN, packed, whole_of
from errors import UserError


def is_built_in(name: str) -> bool:
    """Whether a dataset is made on first use."""
    return name in BUILT_IN or whole_of(name) is not None


def ensure_prepared(datasets: Iterable[str], data_dir: str | None) -> None:
    """Prepare those that are built in and are not prepared yet. Raises UserError."""
    for name in datasets:
        folder = dataset_folder(name, data_dir)
        if is_built_in(name) and not is_prepared(folder):
            _prepare(name, folder)


def _prepare(name: str, folder: Path) -> None:
    """A built-in corpus as a dataset; where another process is making it, its dataset. Raises UserError."""
    from data.tokenize import say_now, tokenize

    whole = whole_of(name)
    wanted = BUILT_IN[whole or name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".making", "w") as lock:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if is_prepared(folder):
                return
            refuse_half(folder)
            say_now(f"preparing {name}, which is built in: {folder}")
            if whole is not None:
                make_apart(wanted, folder, say_now)
                return
            inputs = [packed(name, folder)]
            tokenize(inputs, folder, val_share=wanted.val_share, tokenizer=wanted.tokenizer)
    except OSError as error:
        raise UserError(f"cannot prepare {folder}: {error.strerror or error}") from None
