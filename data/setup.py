"""The built-in corpus is made when it is first asked for; any other dataset must have been prepared."""

from __future__ import annotations

from data.bins import dataset_folder, is_prepared

BUILT_IN = "stdlib"


def ensure_prepared(dataset: str, data_dir: str | None) -> None:
    """Prepare the built-in corpus where it is not. Raises UserError."""
    folder = dataset_folder(dataset, data_dir)
    if dataset == BUILT_IN and not is_prepared(folder):
        from data.tokenize import prepare_stdlib

        prepare_stdlib(folder)
