"""Times along a genome as a table (CSV or Parquet) and as a picture, the true ones beside where they are
known.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from files import replace_atomically
from optim.coalescence.posterior import Posterior
from report.figures import BLACK, BLUE, DPI, TWO_COLUMNS, panels, plain

Array = NDArray[np.float64]
MOST_PAIRS = 4  # in the picture


@dataclass(frozen=True)
class Times:
    """pairs (P, 2); edges (W + 1,) of the windows in bp; accessible (W,): share of each; mean_times (P, W):
    means of the times themselves, in generations; truth: ln times (P, W), None where they are not known;
    draws: ln times of the replicates (R, P, W), None where they are not shown.
    """

    pairs: NDArray[np.int64]
    edges: Array
    accessible: Array
    posterior: Posterior
    mean_times: Array
    replicates: int
    truth: Array | None
    draws: Array | None

    def columns(self, pair: int) -> dict[str, Any]:
        """Of the rows of a pair, a row for each window; times are ln generations, but mean_tmrca."""
        a, b = self.pairs[pair]
        n_windows, found = self.accessible.size, self.posterior
        columns: dict[str, Any] = {
            "pair": np.full(n_windows, f"{a}-{b}"),
            "start": self.edges[:-1],
            "end": self.edges[1:],
            "mean": found.mean[pair],
            "sd": found.sd[pair],
            "low": found.low[pair],
            "high": found.high[pair],
            "mean_tmrca": self.mean_times[pair],
            "accessible": self.accessible,
            "replicates": np.full(n_windows, self.replicates),
        }
        if self.truth is not None:
            columns["truth"] = self.truth[pair]
        if self.draws is not None:
            columns |= {f"draw_{r}": draws[pair] for r, draws in enumerate(self.draws)}
        return columns


def _csv_lines(times: Times) -> Iterator[str]:
    for pair in range(len(times.pairs)):
        columns = times.columns(pair)
        if pair == 0:
            yield ",".join(columns)
        formats = ["{}" if values.dtype.kind in "Ui" else "{:.10g}" for values in columns.values()]
        line = ",".join(formats).format
        yield from map(line, *(values.tolist() for values in columns.values()))


def write_csv(times: Times, path: Path) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in _csv_lines(times))

    replace_atomically(path, write)


def write_parquet(times: Times, path: Path) -> None:
    """A row group for each pair."""
    import pyarrow
    import pyarrow.parquet

    def table(pair: int) -> Any:
        return pyarrow.table(times.columns(pair))

    def write(temporary: Path) -> None:
        first = table(0)
        with pyarrow.parquet.ParquetWriter(temporary, first.schema) as writer:
            writer.write_table(first)
            for pair in range(1, len(times.pairs)):
                writer.write_table(table(pair))

    replace_atomically(path, write)


WRITERS = {"csv": write_csv, "parquet": write_parquet}


def draw(times: Times, path: Path, title: str) -> None:
    """The first pairs along the genome: posterior mean, interval, and the truth, in generations."""
    shown = min(len(times.pairs), MOST_PAIRS)
    figure, axes = panels(shown, 1, TWO_COLUMNS, 0.8 + 1.3 * shown, sharex=True, sharey=True)
    edges, unit = times.edges / 1e6, "Mb"
    if times.edges[-1] < 1e6:
        edges, unit = times.edges / 1e3, "kb"
    for pair, axis in enumerate(axes[:, 0]):
        found = times.posterior
        low, high, mean = (np.exp(each[pair]) for each in (found.low, found.high, found.mean))
        axis.stairs(high, edges, baseline=low, fill=True, color=BLUE, alpha=0.25, label="mean ± 2 sd")
        axis.stairs(mean, edges, baseline=None, color=BLUE, label="posterior mean")
        if times.truth is not None:
            truth = np.exp(times.truth[pair])
            axis.stairs(truth, edges, baseline=None, color=BLACK, linewidth=0.8, label="truth")
        label: str | None = "half or more inaccessible"
        for first, last in _gaps(times.accessible):
            axis.axvspan(edges[first], edges[last], color="0.9", zorder=0, linewidth=0, label=label)
            label = None
        axis.set_yscale("log")
        axis.set_title(f"haplotypes {times.pairs[pair, 0]} and {times.pairs[pair, 1]}", loc="left")
    axes[-1, 0].set_xlabel(f"position ({unit})")
    axes[-1, 0].set_xlim(edges[0], edges[-1])
    figure.supylabel("TMRCA (generations)")
    figure.suptitle(plain(title))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    replace_atomically(path, functools.partial(figure.savefig, format=path.suffix[1:], dpi=DPI))


def _gaps(accessible: Array) -> Iterator[tuple[int, int]]:
    """Stretches of windows of which half or less is accessible: first, and first after it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], accessible <= 0.5, [False]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def accuracy(times: Times, names: Sequence[str]) -> Mapping[str, Any] | None:
    """Mean squared error and correlation of the posterior mean with the truth, of all windows and of each
    pair, and the share of windows whose interval holds the truth; None where it is not known.
    """
    from optim.coalescence.posterior import mse_of_pairs, pearson, pearson_of_pairs

    truth, found = times.truth, times.posterior
    if truth is None:
        return None
    mse, correlation = mse_of_pairs(found.mean, truth), pearson_of_pairs(found.mean, truth)
    inside = (truth >= found.low) & (truth <= found.high)
    return {
        "mse": float(mse.mean()),
        "r": pearson(found.mean, truth),
        "inside_interval": float(inside.mean()),
        "of_pairs": {
            name: {"mse": float(m), "r": float(r)} for name, m, r in zip(names, mse, correlation, strict=True)
        },
    }
