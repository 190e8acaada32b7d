"""Built-in corpora are made when they are first asked for; any other dataset must have been prepared."""

from __future__ import annotations

from collections.abc import Iterable

from data.bins import dataset_folder, is_prepared
from data.built_in import BUILT_IN


def is_built_in(name: str) -> bool:
    """Whether a dataset is made on first use."""
    return name in BUILT_IN


def ensure_prepared(datasets: Iterable[str], data_dir: str | None) -> None:
    """Prepare those that are built in and are not prepared yet. Raises UserError."""
    for name in datasets:
        folder = dataset_folder(name, data_dir)
        if is_built_in(name) and not is_prepared(folder):
            from data.tokenize import prepare_built_in

            prepare_built_in(name, folder)
