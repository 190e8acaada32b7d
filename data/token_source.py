"""Windows of tokens as a batch source: without replacement within an epoch, in the order of data/order.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.batch import Batch
from data.bins import TokenWindows, identity_of, identity_of_tokens
from data.order import SampleOrder
from data.vocabulary import described, other_tokens


class TokenSource:
    """Batches are those of TokenWindows.

    folder: of the dataset, with its meta.json (`meta`); None for tokens that are no file's.
    """

    def __init__(
        self, windows: TokenWindows, data_seed: int, folder: Path | None = None, meta: Any = None
    ) -> None:
        self.windows, self.data_seed, self.folder, self.meta = windows, data_seed, folder, meta or {}
        self.order = SampleOrder(windows.n_windows, data_seed)

    def samples(self, step: int, first: int, count: int) -> Batch:
        """As BatchSource.samples. Raises UserError for a token that the vocabulary lacks."""
        return self.windows.batch(self.order.windows(first, count))

    def items(self, step: int, first: int, count: int) -> int:
        return count * self.windows.length

    def identity(self) -> dict[str, Any]:
        if self.folder is not None:
            return identity_of(self.folder) or {}
        return {"train": identity_of_tokens(self.windows.tokens), "order_seed": self.data_seed}

    def size(self) -> dict[str, int]:
        return {"train_tokens": int(self.windows.tokens.size)}

    def parts(self) -> dict[str, Any]:
        return {"vocabulary": asdict(described(self.meta))}

    def differs(self, state: dict[str, Any]) -> str | None:
        if self.folder is None:
            return None
        differ = other_tokens(state, self.meta, self.folder)
        return f"{differ}: its embeddings begin as those of other tokens" if differ else None

    def describe(self, first: int, count: int, more: bool) -> str:
        numbers = ", ".join(map(str, self.order.windows(first, count)))
        return f"sequences {numbers}{', ...' if more else ''} of the training split"
