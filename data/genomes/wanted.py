"""Which prepared set of genomes a training reads, by its flags: in the form of data.sources.Wanted. Needs no
torch, so that a job can ask before it is queued.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.bins import dataset_folder
from data.genomes.store import META, GenomeMeta, read_meta


@dataclass(frozen=True)
class WantedGenomes:
    """What flags say of the data, under their names."""

    dataset: str
    data_dir: str | None = None

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> WantedGenomes:
        return cls(flags["dataset"], flags["data_dir"])

    @property
    def folder(self) -> Path:
        return dataset_folder(self.dataset, self.data_dir)

    def meta(self) -> GenomeMeta | None:
        """None where the set is not there (yet). Raises UserError."""
        return read_meta(self.folder) if (self.folder / META).exists() else None

    def identity(self) -> dict[str, Any] | None:
        """As GenomeSplits.identity; None where the set is not there. Raises UserError."""
        meta = self.meta()
        return None if meta is None else meta.identity()

    def lacking(self) -> list[str]:
        """A line where the set is not there. Raises UserError where it is damaged."""
        if self.meta() is not None:
            return []
        return [
            f"no prepared genomes in {self.folder}: python -m data.genomes.preprocess makes them"
            " (docs/genomes.md)"
        ]

    def end_of_text(self) -> None:
        """Pairs have none."""
