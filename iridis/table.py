"""Tables of jobs: their stages and what each waits for. Their form: iridis/graph.py."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from errors import UserError

IRIDIS = Path(__file__).parent
GRAPHS = IRIDIS / "graphs"
DEFAULT = "reproduce"
COLUMNS = ("stage", "after", "package", "words")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LATE_SETTING = re.compile(r"[A-Z][A-Z0-9_]*=")
SETTING = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
INCLUDE = re.compile(r"include\s+(\S+)")
# a stage's folder, or that with a label (iridis/lib.sh)
LABELLED = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*=)?@(.+)", re.DOTALL)
FLAGS = "@flags"


@dataclass(frozen=True)
class Stage:
    """A line of a table. `place` is its file and line number; `words` still hold what begins with @."""

    name: str
    after: tuple[str, ...]
    package: str
    settings: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    place: str

    @property
    def parent(self) -> str | None:
        """The stage below which this one is shown: the last of those that it waits for."""
        return self.after[-1] if self.after else None

    @property
    def uses(self) -> list[str]:
        """The stages whose experiment folders are in the words."""
        return [found[2] for word in self.words if word != FLAGS and (found := LABELLED.fullmatch(word))]


# reading a table


def table_names() -> list[str]:
    """The project's tables, the default first."""
    return sorted((path.stem for path in GRAPHS.glob("*.tsv")), key=lambda name: (name != DEFAULT, name))


def table_path(table: str, folder: Path) -> Path:
    """The file of a table: a path, from this folder, or the name of one of the project's.

    Raises UserError where there is none.
    """
    if "/" in table or table.endswith(".tsv"):
        path = folder / table
        if not path.is_file():
            raise UserError(f"there is no table {path}")
        return path
    if table not in table_names():
        raise UserError(f"unknown pipeline {table}; there are {', '.join(table_names())}")
    return GRAPHS / f"{table}.tsv"


def read_table(path: Path, problems: list[str], including: tuple[Path, ...] = ()) -> list[Stage]:
    """The stages of a table and of those that it includes, in their order.

    Adds a line to `problems` for each that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        raise UserError(f"{path} is no text: {error}") from None
    stages = []
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        included = INCLUDE.fullmatch(line.strip())
        try:
            if included:
                other = table_path(included[1], path.parent)
                if other.resolve() in [each.resolve() for each in (*including, path)]:
                    raise UserError(f"{included[1]} includes itself")
                stages += read_table(other, problems, (*including, path))
            elif line.strip() and not line.lstrip().startswith("#"):
                stages.append(read_stage(line, place))
        except UserError as error:
            problems += [f"{place}: {problem}" for problem in str(error).splitlines()]
    return stages


def read_stage(line: str, place: str) -> Stage:
    """A stage from its line. Raises UserError with a line for each mistake."""
    columns = [column.strip() for column in line.split("\t")]
    if len(columns) != len(COLUMNS):
        raise UserError(
            f"{len(columns)} columns instead of {len(COLUMNS)} ({', '.join(COLUMNS)}); tabs separate them"
        )
    name, after, package, text = ["" if column == "-" else column for column in columns]
    problems = []
    if not NAME.fullmatch(name) or f"@{name}" == FLAGS:
        problems.append(
            f"{name!r} cannot be the name of a stage: letters, digits and ._- make one, and @flags has"
            " another meaning"
        )
    try:
        settings, words = split_words(shlex.split(text))
    except ValueError as error:
        settings, words = (), ()
        problems.append(f"words {text!r} cannot be told apart: {error}")
    problems += word_problems(settings, words)
    if problems:
        raise UserError("\n".join(problems))
    earlier = tuple(dict.fromkeys(after.replace(",", " ").split()))
    return Stage(name, earlier, package, settings, words, place)


def split_words(words: Sequence[str]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The settings that words begin with, and the arguments after them."""
    settings = []
    for word in words:
        setting = SETTING.fullmatch(word)
        if setting is None:
            break
        settings.append((setting[1], setting[2]))
    return tuple(settings), tuple(words[len(settings) :])


def word_problems(settings: Sequence[tuple[str, str]], words: Sequence[str]) -> list[str]:
    """A line for each word that would not mean what it seems to."""
    problems = [f"{name}={value}: settings take no @" for name, value in settings if value.startswith("@")]
    options = words[: words.index("--")] if "--" in words else words
    problems += [f"{word}: settings come before arguments" for word in options if LATE_SETTING.match(word)]
    problems += [
        f"{word}: what begins with @ must be a word of its own"
        for word in words
        if "=@" in word and not LABELLED.fullmatch(word)
    ]
    return problems


# checking it


def load(table: str) -> list[Stage]:
    """The stages of a table, in its order. Raises UserError with file, line number and mistake of each wrong
    line.
    """
    path = table_path(table, Path())
    problems: list[str] = []
    stages = read_table(path, problems)
    problems = problems or graph_problems(stages)
    if problems:
        raise UserError("\n".join(problems))
    if not stages:
        raise UserError(f"{path} has no stage")
    return stages


def graph_problems(stages: Sequence[Stage]) -> list[str]:
    """Problems between stages that are each correct."""
    problems: list[str] = []
    known: dict[str, Stage] = {}
    for stage in stages:
        first = known.setdefault(stage.name, stage)
        if first is not stage:
            problems.append(f"{stage.place}: stage {stage.name} is there already: {first.place}")
    for stage in stages:
        problems += [f"{stage.place}: {problem}" for problem in stage_problems(stage, known)]
    return problems + cycle_problems(known)


def stage_problems(stage: Stage, known: Mapping[str, Stage]) -> list[str]:
    problems = []
    if not is_package(stage.package):
        packages = sorted(path.parent.name for path in IRIDIS.glob("*/job.sh"))
        problems.append(f"there is no package {stage.package!r}; there are {', '.join(packages)}")
    problems += [
        f"{stage.name} waits for {name}, which is no stage" for name in stage.after if name not in known
    ]
    waits_for = ancestors(stage, known)
    for name in stage.uses:
        if name not in known:
            problems.append(f"@{name}: there is no stage {name}")
        elif is_package(known[name].package) and not is_training(known[name].package):
            problems.append(f"@{name}: {known[name].package} trains nothing, so it has no experiment folder")
        elif name not in waits_for:
            problems.append(f"@{name}: {stage.name} does not wait for {name}; name it in its second column")
    return problems


def is_package(package: str) -> bool:
    return bool(NAME.fullmatch(package)) and (IRIDIS / package / "job.sh").is_file()


def is_training(package: str) -> bool:
    """Whether the package is one of iridis/train.sh, and so answers to --where."""
    return "run_training" in (IRIDIS / package / "job.sh").read_text(errors="replace")


def ancestors(stage: Stage, known: Mapping[str, Stage]) -> set[str]:
    """All stages that come before one, near and far."""
    found: set[str] = set()
    waiting = list(stage.after)
    while waiting:
        name = waiting.pop()
        if name not in found and name in known:
            found.add(name)
            waiting += known[name].after
    return found


def cycle_problems(known: Mapping[str, Stage]) -> list[str]:
    try:
        in_order(list(known.values()))
    except CycleError as error:
        names = error.args[1]
        return [
            f"{known[names[0]].place}: these stages wait for each other: {', '.join(dict.fromkeys(names))}"
        ]
    return []


def in_order(stages: Sequence[Stage]) -> list[Stage]:
    """Each stage after those that it waits for. Raises CycleError where there is no such order."""
    known = {stage.name: stage for stage in stages}
    sorter = TopologicalSorter({stage.name: stage.after for stage in stages})
    return [known[name] for name in sorter.static_order() if name in known]
