"""Built-in corpora are made when they are first asked for; any other dataset must have been prepared."""

from __future__ import annotations

from data.bins import dataset_folder, is_prepared
from data.built_in import BUILT_IN


def is_built_in(dataset: str) -> bool:
    """Whether a dataset needs no preparation by the user."""
    return dataset in BUILT_IN


def ensure_prepared(dataset: str, data_dir: str | None) -> None:
    """Prepare a built-in corpus where it is not. Raises UserError."""
    folder = dataset_folder(dataset, data_dir)
    if is_built_in(dataset) and not is_prepared(folder):
        from data.tokenize import prepare_built_in

        prepare_built_in(dataset, folder)
