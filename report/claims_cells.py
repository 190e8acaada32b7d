"""The cells of a sweep with what their folders hold: trainings, evaluations, compute budgets, router scores.

trainings = read_cells(sweep)                   # one for each cell, also where nothing is there yet
settings_of(trainings)                          # by what is trained otherwise than by model and seed
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.groups.model import RECURRENT_DEPTH
from config.identity import names_of
from config.schema import IDENTITY, SCHEDULE
from config.sweep import Cell, Sweep, as_text
from data.bins import data_differences
from errors import UserError
from files import read_json
from optim.evaluations import as_float
from optim.names import EVALUATION, FINAL, METRICS, SWEEP
from optim.reader import Record, read_rows
from report.claims_list import Kind
from report.collect import Curve, Evaluation, Trainings, read_curve, read_evaluation
from report.compare import not_final
from report.rows import NAMES, shape

ROUTING = "routing.json"
OF_MODEL = ("model", "n_layer", *(flag.name for flag in RECURRENT_DEPTH))
NOT_OF_SETTING = ("seed", "data_seed")
# loss, nats a token, by cost; cost: macs of a token, or seconds of 1,000
Points = list[tuple[float, float]]


@dataclass
class Trained:
    """A cell. state: of its training. problem: why it has no evaluation; empty if it has one. text: identity
    of what it was evaluated on. curves: see `CurveClaim`, by name and cost. times: when its jobs ran, seconds
    since 1970.
    """

    cell: Cell
    args: Namespace | None = None
    folder: Path | None = None
    state: str = ""
    problem: str = ""
    evaluation: Evaluation | None = None
    bits: float | None = None
    text: Mapping[str, Any] | None = None
    curve: Curve | None = None
    curves: dict[tuple[str, str], Points] = field(default_factory=dict)
    routing: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    times: list[tuple[float, float]] = field(default_factory=list)
    step_seconds: float | None = None
    parameters: int | None = None
    revisions: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        assert self.args is not None, "of a cell that can be trained"
        return Kind.of(self.args)

    @property
    def seed(self) -> int:
        assert self.args is not None, "of a cell that can be trained"
        return int(self.args.seed)

    @property
    def name(self) -> str:
        return self.cell.label if self.args is None else name_of(self.args)


def name_of(args: Namespace) -> str:
    """A model in words, by its flags: `LN-CoTFormer 1+1x3+1, depth embedding`."""
    embedding = ", depth embedding" if Kind.of(args).embedding else ""
    return f"{NAMES[args.model]} {shape(args).removesuffix(' layers')}{embedding}"


def read_cells(sweep: Sweep) -> list[Trained]:
    return [_read(cell) for cell in sweep.cells]


def _read(cell: Cell) -> Trained:
    found = cell.resolved()
    if found.args is None or found.folder is None:
        return Trained(cell, state="refused", problem="; ".join(found.problems))
    one = Trained(cell, found.args, found.folder)
    record = Record(found.folder, one.notes)
    _add_training(one, record)
    if not record.finished(found.args.iterations):
        one.problem = one.state
        return one
    _add_evaluation(one)
    _add_curves(one)
    return one


def _add_training(one: Trained, record: Record) -> None:
    assert one.folder is not None and one.args is not None, "of a cell that can be trained"
    summary = record.summary or {}
    if not one.folder.is_dir():
        one.state = "not started"
    elif record.finished(one.args.iterations):
        one.state = "finished"
    else:
        one.state = f"not finished: step {record.saved_step:,} of {one.args.iterations:,}"
        if record.ending is not None and record.ending.reason:
            one.state += f" ({record.ending.reason.splitlines()[0]})"
    for row in record.segments:
        seconds, began = as_float(row.get("seconds")) or 0.0, as_float(row.get("started"))
        one.seconds += seconds
        if began is not None:
            one.times.append((began, began + seconds))
    revisions = [row.get("revision") for row in record.segments]
    one.revisions = tuple(dict.fromkeys(text for text in revisions if isinstance(text, str)))
    parameters = as_float(summary.get("parameters"))
    one.parameters = None if parameters is None else int(parameters)
    one.step_seconds = _seconds_of_a_step(one.folder / METRICS, one.notes)


def seconds_by_the_clock(trainings: Sequence[Trained]) -> float:
    """In which at least one training ran, over all jobs, killed ones too."""
    total, until = 0.0, 0.0
    for begin, end in sorted(times for one in trainings for times in one.times):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def same_text(first: Trained, second: Trained) -> bool:
    """Whether two evaluations, as far as they say, read the same validation text."""
    return not data_differences({"val": first.text}, {"val": second.text})


def _seconds_of_a_step(path: Path, notes: list[str]) -> float | None:
    """The median of those that the rows of metrics.jsonl state."""
    found = []
    for row in read_rows(path, notes):
        times = row.get("time")
        seconds = as_float(times.get("seconds_per_step")) if isinstance(times, dict) else None
        if row.get("kind") == "train" and seconds:
            found.append(seconds)
    return sorted(found)[len(found) // 2] if found else None


def _add_evaluation(one: Trained) -> None:
    """Sets `problem` where there is none that counts."""
    assert one.folder is not None, "of a finished training"
    path = one.folder / EVALUATION.format(Path(FINAL).stem)
    if not path.is_file():
        one.problem = f"no evaluation ({path.name} is missing)"
        return
    values: Mapping[str, Any] = {}
    try:
        values = read_json(path) or {}
        evaluation = read_evaluation(path, Trainings([one.folder], one.notes))
    except UserError as error:
        loss = values.get("val_loss", 0.0)
        is_finite = isinstance(loss, float) and math.isfinite(loss)  # files have null for the others
        one.problem = str(error).replace(f"{path}: ", "") if is_finite else "diverged: its loss is not finite"
        return
    reason = not_final(evaluation)
    if reason is not None:
        one.problem = f"its evaluation does not count: {reason}"
        return
    one.evaluation, one.bits = evaluation, as_float(values.get("bits_per_byte"))
    one.text = values["data"] if isinstance(values.get("data"), dict) else None


def _add_curves(one: Trained) -> None:
    assert one.folder is not None, "of a finished training"
    if (one.folder / SWEEP).is_file():
        try:
            one.curve = read_curve(one.folder / SWEEP)
        except UserError as error:
            one.notes.append(str(error))
    if one.curve is not None:
        length = one.curve.sequence_length
        for name, points in (("router", one.curve.router), ("fixed_depth", one.curve.fixed_depth)):
            one.curves[name, "macs"] = sorted(
                (each.macs / length, math.log(each.perplexity)) for each in points
            )
    try:
        one.routing = _routing_rows(one.folder / ROUTING)
    except UserError as error:
        one.notes.append(str(error))
    for name in ("capacity", "threshold"):
        rows = [row for row in one.routing if row["routing"] == name]
        for cost in ("macs", "seconds"):
            one.curves[name, cost] = sorted((row[cost], row["loss"]) for row in rows if row[cost] is not None)


def _routing_rows(path: Path) -> list[dict[str, Any]]:
    """Empty where there is no such file. Raises UserError."""
    content = read_json(path)
    rows = [] if content is None else content.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path.name} has no list of rows")
    for number, row in enumerate(rows):
        for name in ("macs", "loss"):
            value = as_float(row.get(name))
            if value is None or not math.isfinite(value):
                raise UserError(f"{path.name}: rows[{number}].{name} is no number")
        row["seconds"] = as_float(row.get("seconds"))
    return [row for row in rows if row.get("routing") in ("capacity", "threshold")]


@dataclass(frozen=True)
class Setting:
    """Trainings that differ in model and seed alone. values: of the other flags."""

    values: Mapping[str, Any]
    trainings: Sequence[Trained]
    label: str = ""

    def of(self, kind: Kind) -> dict[int, Trained]:
        """By seed."""
        found: dict[int, Trained] = {}
        for one in self.trainings:
            if one.kind == kind:
                found.setdefault(one.seed, one)
        return found

    @property
    def kinds(self) -> list[Kind]:
        return list(dict.fromkeys(one.kind for one in self.trainings))

    @property
    def steps(self) -> int:
        return int(self.values["iterations"])

    @property
    def is_extension(self) -> bool:
        """Not as the paper trains: other blocks, or another optimiser."""
        return _is_extension(self.values)


def settings_of(trainings: Sequence[Trained]) -> list[Setting]:
    """The published blocks with AdamW first. Their labels say in what they differ."""
    found: dict[str, tuple[dict[str, Any], list[Trained]]] = {}
    for one in trainings:
        if one.args is not None:
            values = {
                name: getattr(one.args, name)
                for name in names_of(IDENTITY, SCHEDULE, args=vars(one.args))
                if name not in (*OF_MODEL, *NOT_OF_SETTING)
            }
            found.setdefault(repr(values), (values, []))[1].append(one)
    groups = sorted(found.values(), key=lambda group: _is_extension(group[0]))
    differing = []
    for name in groups[0][0] if groups else ():
        if len({repr(values.get(name)) for values, _ in groups}) > 1:
            differing.append(name)
    settings = []
    for values, own in groups:
        _note_repeats(own)
        label = ", ".join(f"{name} {as_text(values.get(name))}" for name in differing)
        settings.append(Setting(values, own, label))
    return settings


def _note_repeats(trainings: Sequence[Trained]) -> None:
    """A note on each cell of a model and seed that an earlier one has too."""
    first: dict[tuple[Kind, int], Trained] = {}
    for one in trainings:
        other = first.setdefault((one.kind, one.seed), one)
        if other is not one:
            one.notes.append(f"is not counted: {other.cell.title} is the same model with the same seed")


def _is_extension(values: Mapping[str, Any]) -> bool:
    return values.get("block") != "published" or values.get("opt") != "adamw"
