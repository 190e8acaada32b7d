"""The rows of metrics.jsonl in other forms, on the main process: --csv and --tensorboard.

Each run of a training writes them anew from metrics.jsonl, which has every row once; so a kill, a resume or a
rollback leaves no row twice, and none too many.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import UserError
from files import remove_folder, write_atomically
from optim.hooks import Hook, Run
from optim.names import METRICS
from optim.reporting import log

CSV, TENSORBOARD = "metrics.csv", "tensorboard"
SECONDS = 60.0  # least time between two exports, but for evaluations and the end
FIRST_COLUMNS = ("kind", "step")


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row without its inner dicts, whose keys follow theirs after a dot."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def as_csv(rows: list[dict[str, Any]]) -> str:
    """All rows under the columns of all; lists as JSON, what a row lacks empty."""
    flattened = [flat(row) for row in rows]
    columns = dict.fromkeys(FIRST_COLUMNS)
    for row in flattened:
        columns |= dict.fromkeys(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in flattened:
        lists = {key: json.dumps(value) for key, value in row.items() if isinstance(value, list)}
        writer.writerow({**row, **lists})
    return text.getvalue()


class Export(Hook):
    """Writes after each evaluation, at the end, and from time to time."""

    def joined(self, run: Run) -> None:
        """As Hook.joined."""
        self.run = run

    def started(self, step: int) -> None:
        """As Hook.started."""
        self._export()

    def stepped(self, step: int, loss: float) -> None:
        """As Hook.stepped."""
        if time.monotonic() - self.written_at > SECONDS:
            self._export()

    def evaluated(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """As Hook.evaluated."""
        self._export()

    def ended(self, step: int, reason: str) -> None:
        """As Hook.ended."""
        self._export()

    def _export(self) -> None:
        self.written_at = time.monotonic()
        experiment = self.run.experiment
        if experiment is None or experiment.lock.lost:
            return
        try:
            self.write(self.run.folder)
        except OSError as error:  # a copy is no reason to end a training
            log.warning(f"warning: no export by {type(self).__name__}: {error.strerror}; it is tried again")

    def write(self, folder: Path) -> None:
        """Bring the export up to date, on the main process."""
        raise NotImplementedError("an export must say what it writes")


class MetricsCsv(Export):
    """metrics.csv, replaced as a whole."""

    def write(self, folder: Path) -> None:
        """As Export.write."""
        assert self.run.experiment is not None, "the main process has the experiment"
        write_atomically(folder / CSV, as_csv(self.run.experiment.metrics.rows()))


class TensorBoard(Export):
    """Event files in tensorboard/: each number of a row under KIND/NAME, such as train/loss."""

    def __init__(self) -> None:
        """Raises UserError where the package is missing."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard: the tensorboard package is not installed; pip install -r"
                " requirements-tensorboard.txt"
            ) from None
        self.make_writer: Any = SummaryWriter
        self.writer: Any = None
        self.read = 0  # bytes of metrics.jsonl

    def write(self, folder: Path) -> None:
        """As Export.write: the rows that are new since the last time."""
        if self.writer is None:
            if (folder / TENSORBOARD).exists():
                remove_folder(folder / TENSORBOARD)
            self.writer = self.make_writer(str(folder / TENSORBOARD))
        path = folder / METRICS
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self.read)
            raw = file.read()
        self.read += len(raw)
        for line in raw.splitlines():
            self._add(json.loads(line))
        self.writer.flush()

    def _add(self, row: dict[str, Any]) -> None:
        kind, step, at = row.pop("kind"), row.pop("step"), row.get("time", {}).pop("unix", None)
        for key, value in flat(row).items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(f"{kind}/{key.removeprefix('time.')}", value, step, walltime=at)

    def ended(self, step: int, reason: str) -> None:
        """As Hook.ended."""
        super().ended(step, reason)
        if self.writer is not None:
            self.writer.close()
