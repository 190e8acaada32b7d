"""The built-in corpus is made when it is first asked for; any other dataset must have been prepared."""

from __future__ import annotations

from collections.abc import Iterable

from data.bins import dataset_folder, is_prepared

BUILT_IN = "stdlib"


def is_built_in(name: str) -> bool:
    """Whether a dataset is made on first use."""
    return name == BUILT_IN


def ensure_prepared(datasets: Iterable[str], data_dir: str | None) -> None:
    """Prepare those that are built in and are not prepared yet. Raises UserError."""
    for name in datasets:
        folder = dataset_folder(name, data_dir)
        if is_built_in(name) and not is_prepared(folder):
            from data.tokenize import prepare_stdlib

            prepare_stdlib(folder)
