"""The six checkpoints of coalescence times beside the values that were reported for them.

    python -m report coalescence iridis/coalescence-eval/run_0 --output reports

Reads the eval_summary_*.json of eval.py below the folders; a checkpoint is called by the folder that its
summary is in, as iridis/coalescence-eval/job.sh makes them, or by its experiment. Writes coalescence.md,
coalescence.html with the pictures inside, and the pictures beside. Exit code 2 where there is nothing.
"""

from __future__ import annotations

import base64
import functools
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from config import guarded
from config.schema import Flag
from errors import UserError
from files import read_json, write_atomically
from optim.names import EVALUATIONS
from report.command import paths_and_flags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "python -m report coalescence"
OUTPUT = (Flag("output", str, "reports", "folder to write to"),)
TITLE = "Coalescence times: six checkpoints"
MEASURES = "times"  # what such a summary says that it measures


class Reported(NamedTuple):
    """A row of the published documentation's check. label: ours of the checkpoint. name: published."""

    label: str
    name: str
    sequence: str
    samples: int
    mse: str
    r: str


# constant Ne, seed 42, pairs (0, 1) and (2, 3), 10 replicates, top_k 50, no correction
REPORTED = (
    Reported("broad", "broad", "1 Mb", 50, "0.2", "0.83-0.93"),
    Reported("narrow", "narrow", "1 Mb", 50, "0.2", "0.83-0.93"),
    Reported("residual", "residual", "1 Mb", 50, "0.5-0.7", "0.83-0.93"),
    Reported("broad_w200", "broad_w200 (Ne 5e4)", "100 kb", 50, "1.0-1.1", "0.75-0.91"),
    Reported(
        "w200_wmissing", "w200_wmissing (Ne 5e4, all-accessible mask)", "100 kb", 50, "1.1-1.2", "0.75-0.90"
    ),
    Reported("broad_adapter", "broad+adapter", "1 Mb", 10, "0.2", "0.87-0.91"),
    Reported(
        "w200_wmissing_adapter", "w200_wmissing_adapter (no mask passed)", "100 kb", 10, "0.4-0.7", "0.80"
    ),
)
# method, scenario, mean squared error: the paper's supplement
PAPER = (
    ("narrow", "constant", 0.2531),
    ("narrow", "sawtooth", 0.7496),
    ("broad", "sawtooth", 0.1796),
    ("adapter", "constant", 0.2631),
    ("adapter", "sawtooth", 0.1946),
    ("Singer+Polegon", "constant", 0.247),
    ("Singer+Polegon", "sawtooth", 0.2129),
    ("SMC++", "constant", 0.8685),
    ("SMC++", "sawtooth", 1.7919),
)
RELEASED = (
    "narrow_epoch=5-step=4692",
    "broad_epoch=1-step=5280",
    "residual_epoch=1-step=5280",
    "broad_w200_epoch=1-step=944",
    "w200_wmissing_epoch=1-step=944",
    "broad_adapter_epoch=2-step=792",
    "w200_wmissing_adapter_epoch=9-step=480",
)
ORDER = ("narrow", "broad", "broad_w200", "w200_wmissing", "broad_adapter", "w200_wmissing_adapter")
PUBLISHED_WINDOWS = 500


class Bar(NamedTuple):
    """What a checkpoint of the tiny size is to reach: MSE below a multiple of the train mean's; r above."""

    ratio: float
    r: float


BARS = {label: Bar(0.7, 0.55) for label in ORDER} | {"w200_wmissing_adapter": Bar(0.9, 0.3)}
NOTES = """\
MSE and r are of ln TMRCA: posterior mean over replicates against the truth, over all windows of held-out
pairs. *Train mean* is the MSE of always answering the mean of the training set. *Inside 2 sd*: share of
windows whose truth is within two standard deviations of the replicates (a normal posterior that is
calibrated: 0.954). The bar is that of the tiny size: MSE over the train mean's, and r."""
REPORTED_NOTES = """\
The published documentation's check is of two pairs of one simulated megabase (or 100 kb) of a constant
population; ours is of test pairs of all scenarios. Only checkpoints of the published size and data can be
compared with it."""
NOT_COMPARABLE = "not comparable: another size than the published one"


@dataclass(frozen=True)
class Evaluated:
    """A summary of eval.py, and what its checkpoint is called."""

    label: str
    path: Path
    values: Mapping[str, Any]

    @property
    def all(self) -> Mapping[str, Any]:
        """Of all test pairs together."""
        found: Mapping[str, Any] = self.values["all"]
        return found

    @property
    def is_published_size(self) -> bool:
        return bool(self.all["windows"] == PUBLISHED_WINDOWS * self.all["pairs"])

    def of_files(self) -> list[str]:
        values = self.values
        return [self.label, values["checkpoint"], f"{values.get('itr')}", f"{values.get('dataset', '')}"]

    def verdict(self) -> str:
        bar = BARS.get(self.label)
        if bar is None or self.is_published_size:
            return ""
        ratio = self.all["mse"] / self.all["mse_of_train_mean"]
        is_kept = ratio < bar.ratio and (self.all["r"] or 0) > bar.r
        return f"{'yes' if is_kept else 'NO'} ({ratio:.2f} < {bar.ratio:g}, r > {bar.r:g})"


def label_of(path: Path, values: Mapping[str, Any]) -> str:
    """The folder's name where a job has made it for a label; else the experiment's."""
    experiment = Path(values["checkpoint"]).parent.name
    name = path.parent.name
    return name if name in ORDER or name == "residual" else experiment.removeprefix("tiny_")


def read(folders: Sequence[Path]) -> tuple[list[Evaluated], list[str]]:
    """Evaluations of times below folders, the newest of each label, in the order of the graph; and a line for
    each damaged file. Raises UserError where there is none.
    """
    from report.collect import below

    problems: list[str] = []
    found: dict[str, Evaluated] = {}
    paths = below(folders, EVALUATIONS[0], problems)
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            values = read_json(path) or {}
            if values.get("measures") == MEASURES:
                one = Evaluated(label_of(path, values), path, values)
                rows_of(one), one.verdict()
                found[one.label] = one
        except UserError as error:
            problems.append(str(error))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            problems.append(f"{path} cannot be used: {type(error).__name__} {error}")
    if not found:
        nothing = f"no evaluation of coalescence times below {', '.join(map(str, folders))}"
        raise UserError("\n".join([*problems, nothing]))
    known = [*ORDER, *sorted(set(found) - set(ORDER))]
    return [found[label] for label in known if label in found], problems


def number(value: float | None, digits: int = 3) -> str:
    """For a cell; a correlation of what does not vary is none."""
    return "" if value is None else f"{value:.{digits}f}"


def measured(values: Mapping[str, Any]) -> list[str]:
    numbers = [number(values[name]) for name in ("mse", "mse_of_train_mean", "r", "bias", "inside_2_sd")]
    return [f"{values['pairs']:,}", *numbers]


def rows_of(one: Evaluated) -> list[list[str]]:
    """Of each scenario."""
    return [[one.label, name, *measured(values)] for name, values in one.values["scenarios"].items()]


COLUMNS = ("pairs", "MSE", "train mean", "r", "bias", "inside 2 sd")
Table = tuple[str, Sequence[str], list[list[str]], str]  # heading, header, rows, note below


def tables(found: Sequence[Evaluated]) -> list[Table]:
    """All that the page has, but for the pictures."""
    steps = {name.partition("_epoch=")[0]: name.rpartition("=")[2] for name in RELEASED}
    ours = [[one.label, *measured(one.all), one.verdict()] for one in found]
    by_label = {one.label: one for one in found}
    beside = []
    for row in REPORTED:
        one = by_label.get(row.label)
        own = ["", "", ""]
        if one is not None:
            remark = "" if one.is_published_size else NOT_COMPARABLE
            own = [number(one.all["mse"]), number(one.all["r"]), remark]
        beside.append([row.name, row.sequence, str(row.samples), row.mse, row.r, steps[row.label], *own])
    scenarios = [row for one in found for row in rows_of(one)]
    files = [one.of_files() for one in found]
    return [
        ("Checkpoints", ("checkpoint", *COLUMNS, "within the bar"), ours, NOTES),
        (
            "Beside the reported values",
            (
                *("reported", "sequence", "samples", "its MSE", "its r", "its steps"),
                *("our MSE", "our r", "remark"),
            ),
            beside,
            REPORTED_NOTES,
        ),
        (
            "Reported in the paper",
            ("method", "scenario", "MSE"),
            [[method, scenario, f"{mse:g}"] for method, scenario, mse in PAPER],
            "",
        ),
        ("By scenario", ("checkpoint", "scenario", *COLUMNS), scenarios, ""),
        ("Files", ("checkpoint", "file", "steps", "measured on"), files, ""),
    ]


def draw(found: Sequence[Evaluated]) -> dict[str, Figure]:
    """The pictures by their names: accuracy, and calibration."""
    from report.figures import BLUE, FAINT, ORANGE, TWO_COLUMNS, panels

    labels = [one.label for one in found]
    accuracy, axes = panels(1, 2, TWO_COLUMNS, 0.9 + 0.35 * len(found), sharey=True)
    rows = list(range(len(found)))
    axes[0, 0].barh(
        rows,
        [one.all["mse_of_train_mean"] for one in found],
        0.8,
        color=ORANGE,
        alpha=FAINT,
        label="train mean",
    )
    axes[0, 0].barh(rows, [one.all["mse"] for one in found], 0.5, color=BLUE, label="posterior mean")
    axes[0, 0].set_xlabel("MSE of ln TMRCA")
    axes[0, 1].barh(rows, [one.all["r"] or 0 for one in found], 0.5, color=BLUE)
    axes[0, 1].set_xlabel("r of ln TMRCA")
    axes[0, 1].set_xlim(min(0, *(one.all["r"] or 0 for one in found)), 1)
    axes[0, 0].set_yticks(rows, labels)
    axes[0, 0].invert_yaxis()
    accuracy.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return {"coalescence_accuracy": accuracy, "coalescence_calibration": draw_calibration(found)}


def draw_calibration(found: Sequence[Evaluated]) -> Figure:
    """How often intervals of each level hold the truth, and where the truth ranks among the draws."""
    from report.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, TWO_COLUMNS, panels

    figure, axes = panels(1, 2, TWO_COLUMNS, 3.2)
    colours = [BLUE, ORANGE, GREEN, PURPLE, SKY, "#E69F00", BLACK]
    markers = "os^Dv<>"
    axes[0, 0].plot([0, 1], [0, 1], color=BLACK, linestyle=":", linewidth=0.8)
    for place, one in enumerate(found):
        style = {"color": colours[place % 7], "marker": markers[place % 7], "label": one.label}
        inside = {float(level): share for level, share in one.all["inside"].items()}
        axes[0, 0].plot(list(inside), list(inside.values()), **style)
        ranks = one.all["ranks"]
        shares = [count * len(ranks) / sum(ranks) for count in ranks]
        positions = [rank / (len(ranks) - 1) for rank in range(len(ranks))]
        axes[0, 1].plot(positions, shares, markersize=2.5, **style)
    axes[0, 0].set(xlabel="level of the interval", ylabel="share that holds the truth", xlim=(0.4, 1))
    axes[0, 0].set_ylim(0, 1)
    axes[0, 1].axhline(1, color=BLACK, linestyle=":", linewidth=0.8)
    axes[0, 1].set(xlabel="share of draws below the truth", ylabel="windows (1: as many as expected)")
    axes[0, 1].set_ylim(0)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def markdown(parts: Sequence[Table], pictures: Sequence[str]) -> str:
    from report.render import table

    lines = [f"# {TITLE}", ""]
    for place, (heading, header, rows, note) in enumerate(parts):
        lines += [f"## {heading}", "", *table(header, rows), "", *([note, ""] if note else [])]
        if place == 0:
            lines += [line for name in pictures for line in (f"![{name}]({name}.png)", "")]
    return "\n".join(lines)


CSS = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{border:1px solid #ccc;padding:.25em .6em;text-align:left}"
    "img{max-width:100%;height:auto}"
)


def html(parts: Sequence[Table], pictures: Mapping[str, bytes]) -> str:
    """One page that needs nothing else: no script, nothing fetched."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    lines = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{TITLE}</title><style>{CSS}</style></head><body><h1>{TITLE}</h1>",
    ]
    for place, (heading, header, rows, note) in enumerate(parts):
        lines.append(f"<h2>{escape(heading)}</h2><table>")
        for tag, cells in [("th", header), *(("td", row) for row in rows)]:
            lines.append(
                "<tr>" + "".join(f"<{tag}>{escape(cell) or '-'}</{tag}>" for cell in cells) + "</tr>"
            )
        lines.append(f"</table><p>{escape(note).replace('*', '')}</p>")
        if place == 0:
            for name, image in pictures.items():
                data = base64.b64encode(image).decode()
                lines.append(f'<p><img alt="{escape(name)}" src="data:image/png;base64,{data}"></p>')
    return "\n".join([*lines, "</body></html>", ""])


def write(folders: Sequence[Path], output: Path) -> None:
    """Raises UserError."""
    found, problems = read(folders)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    images = {}
    for name, figure in draw(found).items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
        images[name] = image.getvalue()
    output.mkdir(parents=True, exist_ok=True)
    parts = tables(found)
    for name, content in images.items():
        write_atomically(output / f"{name}.png", content)
    text = markdown(parts, list(images))
    write_atomically(output / "coalescence.html", html(parts, images))
    write_atomically(output / "coalescence.md", text)
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    folders, flags = paths_and_flags(
        argv,
        PROG,
        "The six checkpoints of coalescence times beside the reported values.",
        OUTPUT,
        "FOLDER...",
    )
    return guarded(PROG, functools.partial(_work, folders, Path(flags["output"])))


def _work(folders: Sequence[Path], output: Path) -> int:
    write(folders, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
