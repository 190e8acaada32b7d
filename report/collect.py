"""Reads what eval.py and get_ppl_per_mac.py wrote, anywhere below some folders, and the training's
own flags beside it.

    found = collect([Path("exps"), Path("iridis")])
    found.evaluations, found.curves, found.problems     # problems: a line for each unusable file
"""

from __future__ import annotations

import fnmatch
import math
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import config
from config.identity import names_of
from config.schema import EVALUATION, SCHEDULE
from errors import UserError
from files import read_json
from optim.evaluations import of_sources
from optim.names import EVALUATIONS, SUMMARY
from optim.reader import Record

T = TypeVar("T")
MOST_NATS = 300.0  # of a difference of losses; the exponential of more is no float


class Leg(NamedTuple):
    """Part of a training's schedule, from step `begin` to before `end`; an extension adds one.

    As optim.schedules has it.
    """

    begin: int
    end: int
    start_rate: float
    top_rate: float
    rise: float
    origin: int | None = None  # where its course starts, if not at `begin`: it rejoined a longer plan


@dataclass(frozen=True)
class Evaluation:
    """One eval_summary_*.json. `interval`: ends of the 95% interval of the perplexity over texts, of this one
    model.

    grouped: what its windows were grouped by, for people; empty in an older file. sources: of a mixture, the
    perplexity on each.
    """

    path: Path
    modified: float
    checkpoint: str
    steps: int
    perplexity: float
    interval: tuple[float, float]
    loss: float
    accuracy: float
    depth: float
    n_tokens: int
    parameters: int | None
    args: Namespace  # as evaluated
    trained: Namespace  # as trained
    processes: int | None  # of the training; None: its summary.json was not found
    legs: tuple[Leg, ...] = ()  # of the training; empty: its summary.json has none
    skipped: tuple[int, ...] = ()  # steps of the training that were passed over
    grouped: str = ""
    sources: Mapping[str, float] = field(default_factory=dict)

    @property
    def seed(self) -> tuple[int, int]:
        return self.trained.seed, self.trained.data_seed


@dataclass(frozen=True)
class Point:
    """Perplexity at one compute budget. `label`: router threshold, or number of passes. interval: over texts,
    of the one model.

    paired: over the same windows' differences to full depth, around the perplexity; None in a file without
    it.
    """

    label: float
    macs: int
    perplexity: float
    interval: tuple[float, float]
    depth: float
    seconds: float | None
    paired: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """One ppl_per_mac.json.

    is_timed: its budgets were timed together, not each once on its own as in earlier files. is_published:
    the router's capacities are those of the authors' code.
    """

    path: Path
    checkpoint: str
    steps: int | None
    sequence_length: int
    args: Namespace
    router: tuple[Point, ...]
    fixed_depth: tuple[Point, ...]
    is_timed: bool = False
    is_published: bool = False


@dataclass
class Found:
    evaluations: list[Evaluation] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Object:
    """Values of a JSON object by name; UserError names the file and what is wrong with it."""

    def __init__(self, path: Path, values: Any, where: str = "") -> None:
        if not isinstance(values, dict):
            raise UserError(f"{path}: {where or 'the file'} is no JSON object")
        self.path, self.values, self.where = path, values, where

    def _get(self, name: str, kind: str, accept: Callable[[Any], bool]) -> Any:
        value = self.values.get(name)
        if not accept(value):
            raise UserError(
                f"{self.path}: {self.where}{name} is {'missing' if value is None else f'{value!r:.40}'}, not"
                f" {kind}"
            )
        return value

    def number(self, name: str, low: float = -math.inf) -> float:
        return float(self._get(name, "a number", lambda value: _is_number(value) and value >= low))

    def whole(self, name: str) -> int:
        return int(
            self._get(
                name, "a whole number", lambda value: _is_number(value) and value >= 0 and value == int(value)
            )
        )

    def whole_or_none(self, name: str) -> int | None:
        return None if self.values.get(name) is None else self.whole(name)

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; one that is missing is empty."""
        if self.values.get(name) is None:
            return ()
        return tuple(
            map(
                int,
                self._get(
                    name,
                    "a list of whole numbers",
                    lambda value: isinstance(value, list) and all(map(_is_number, value)),
                ),
            )
        )

    def text(self, name: str) -> str:
        return self._get(name, "a text", lambda value: isinstance(value, str))

    def pair(self, name: str) -> tuple[float, float]:
        low, high = self._get(
            name,
            "two numbers in order",
            lambda value: (
                isinstance(value, list)
                and len(value) == 2
                and all(map(_is_number, value))
                and value[0] <= value[1]
            ),
        )
        return low, high

    def interval(self, name: str, value: float) -> tuple[float, float]:
        """Ends of an interval about a value; of a single window, which has none, the value twice."""
        return (value, value) if name in self.values and self.values[name] is None else self.pair(name)

    def rows(self, name: str) -> list[_Object]:
        rows = self._get(name, "a list", lambda value: isinstance(value, list))
        return [_Object(self.path, row, f"{self.where}{name}[{number}].") for number, row in enumerate(rows)]

    def flags(self) -> Namespace:
        return flags(
            self.path, self._get("args", "an object of flags", lambda value: isinstance(value, dict))
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def flags(path: Path, values: dict[str, Any]) -> Namespace:
    """All flags, from those that a file recorded. Raises UserError."""
    try:
        args = config.add_defaults(config.recorded(values))
    except ValueError as error:
        raise UserError(f"{path}: args.{error}") from None
    for problem in config.check(args):
        raise UserError(f"{path}: args: {problem}")
    return args


def _read(path: Path) -> _Object:
    return _Object(path, read_json(path))


class Trainings:
    """summary.json files of trainings, found by the checkpoint, also where results were copied to another
    machine.
    """

    def __init__(self, folders: Sequence[Path], problems: list[str]) -> None:
        self.problems = problems
        self.copies: dict[tuple[str, ...], Path] = {}
        for path in below(folders, SUMMARY, problems):
            self.copies.setdefault(path.resolve().parts[-4:-1], path.parent)

    def summary(self, checkpoint: str) -> dict[str, Any] | None:
        """summary.json beside the checkpoint; for a run that was extended later, the one of the checkpoint's
        step.
        """
        path = Path(checkpoint)
        for folder in (path.parent, self.copies.get(path.resolve().parts[-4:-1], path.parent)):
            try:
                found = Record(folder).summary_of(path.name)
            except UserError as error:
                self.problems.append(str(error))
                return None
            if found is not None:
                return found
        return None


def _trained(args: Namespace, path: Path, summary: dict[str, Any]) -> Namespace:
    """The flags of the training where its summary has them, else those that the evaluation recorded."""
    if not isinstance(summary.get("args"), dict):
        return args
    trained = flags(path, {**vars(args), **summary["args"]})
    for name in names_of(EVALUATION, SCHEDULE):
        setattr(trained, name, getattr(args, name))
    return trained


def _legs(summary: _Object) -> tuple[Leg, ...]:
    """Those that the training's summary has."""
    if summary.values.get("schedule") is None:
        return ()
    schedule = _Object(summary.path, summary.values["schedule"], f"{summary.where}schedule.")
    return tuple(
        Leg(
            leg.whole("begin"),
            leg.whole("end"),
            leg.number("start_rate"),
            leg.number("top_rate"),
            leg.number("rise"),
            leg.whole_or_none("origin"),
        )
        for leg in schedule.rows("legs")
    )


def read_evaluation(path: Path, trainings: Trainings) -> Evaluation:
    """Raises UserError."""
    file = _read(path)
    if "measures" in file.values:
        raise UserError(f"{path} is of {file.text('measures')}, which have no perplexity: left out")
    args, checkpoint = file.flags(), file.text("checkpoint")
    summary = trainings.summary(checkpoint) or {}
    training, perplexity = _Object(path, summary, "its training's "), file.number("val_perplexity", 1)
    steps, processes = file.whole_or_none("itr"), summary.get("world_size")
    return Evaluation(
        path,
        path.stat().st_mtime,
        checkpoint,
        args.iterations if steps is None else steps,
        perplexity,
        file.interval("val_perplexity_ci95", perplexity),
        file.number("val_loss", 0),
        file.number("val_acc", 0),
        file.number("average_depth", 0),
        file.whole("n_tokens"),
        file.whole_or_none("parameters"),
        args,
        _trained(args, path, summary),
        processes if isinstance(processes, int) else None,
        _legs(training),
        training.wholes("skipped_steps"),
        _grouped(file),
        of_sources(file.values, "val_perplexity"),
    )


def _grouped(file: _Object) -> str:
    """How windows were grouped, in words; empty in an older file."""
    return (
        ""
        if file.values.get("interval") is None
        else _Object(file.path, file.values["interval"], "interval.").text("by")
    )


def _paired(row: _Object, perplexity: float) -> tuple[float, float] | None:
    """Ends of the 95% interval of the loss's difference to full depth, as perplexities about that of the
    point.
    """
    if row.values.get("loss_difference_ci95") is None:
        return None
    difference, (low, high) = row.number("loss_difference"), row.pair("loss_difference_ci95")
    if not -MOST_NATS < low <= difference <= high < MOST_NATS:
        raise UserError(
            f"{row.path}: {row.where}loss_difference {difference:g} is not between {low:g} and {high:g}"
        )
    return perplexity * math.exp(low - difference), perplexity * math.exp(high - difference)


def _point(row: _Object, label: str) -> Point:
    seconds = (
        None if row.values.get("seconds_per_sequence") is None else row.number("seconds_per_sequence", 0)
    )
    budget, macs, perplexity = row.number(label), row.whole("macs"), row.number("val_perplexity", 1)
    return Point(
        budget,
        macs,
        perplexity,
        row.interval("val_perplexity_ci95", perplexity),
        row.number("average_depth", 0),
        seconds,
        _paired(row, perplexity),
    )


def read_curve(path: Path) -> Curve:
    """Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} is no file")
    file = _read(path)
    router = tuple(_point(row, "threshold") for row in file.rows("router"))
    fixed_depth = tuple(_point(row, "passes") for row in file.rows("fixed_depth"))
    if not router and not fixed_depth:
        raise UserError(f"{path}: holds no points")
    return Curve(
        path,
        file.text("checkpoint"),
        file.whole_or_none("itr"),
        file.whole("sequence_length"),
        file.flags(),
        router,
        fixed_depth,
        bool(file.values.get("timing")),
        bool(file.values.get("published")),
    )


def below(folders: Sequence[Path], pattern: str, problems: list[str]) -> list[Path]:
    """Files of that name below folders, each once; a folder that cannot be read goes to `problems`."""
    found = {}
    for folder in folders:
        for place, _, names in os.walk(
            folder, onerror=lambda error: problems.append(f"{error.filename}: {error.strerror}")
        ):
            paths = [Path(place, name) for name in fnmatch.filter(names, pattern)]
            found.update({path.resolve(): path for path in paths if path.is_file()})
    return sorted(found.values())


def _read_all(paths: Sequence[Path], read: Callable[[Path], T], problems: list[str]) -> list[T]:
    result = []
    for path in paths:
        try:
            result.append(read(path))
        except UserError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
    return result


def collect(folders: Sequence[Path]) -> Found:
    """All evaluations and sweeps below the folders. Raises UserError where there are none, with a line for
    each damaged file.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder")
    found = Found()
    trainings = Trainings(folders, found.problems)
    evaluations, sweeps = EVALUATIONS
    found.evaluations = _read_all(
        below(folders, evaluations, found.problems),
        lambda path: read_evaluation(path, trainings),
        found.problems,
    )
    found.curves = _read_all(below(folders, sweeps, found.problems), read_curve, found.problems)
    found.problems = list(dict.fromkeys(found.problems))
    if not found.evaluations and not found.curves:
        nothing = f"no eval_summary_*.json and no ppl_per_mac.json below {', '.join(map(str, folders))}"
        raise UserError("\n".join(found.problems) or nothing)
    return found
