"""A graph of jobs from a table: its stages, what each waits for, and their states. Needs no torch.

    python -m iridis.graph [TABLE] [-- FLAGS]           # check the table, ask for every state, print the tree
    python -m iridis.graph [TABLE] --queue [-- FLAGS]   # also queue what is to do; called by
                                                        # bash iridis/pipeline.sh where there is SLURM

TABLE is the name of a file in iridis/graphs/, or a path to a file of your own that ends in .tsv. Its lines
have four columns, separated by tabs; `-` stands for an empty one, `#` begins a line of comment:

    stage      a name
    after      the stages that it waits for, separated by spaces or commas
    package    a folder of iridis/ that holds a job.sh
    words      as in a shell: settings for the environment (NAME=VALUE, or NAME= to unset one), then arguments
               for job.sh. `@STAGE` is the experiment folder of an earlier training; `@flags` are the FLAGS of
               this command line.

A line `include TABLE` adds the stages of another table (a path is relative to this table's folder). Exit code
2: a line for each problem of the table, or for each stage that could not be asked or queued.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from config import Arguments, guarded
from errors import UserError

IRIDIS = Path(__file__).parent
GRAPHS = IRIDIS / "graphs"
DEFAULT = "reproduce"
COLUMNS = ("stage", "after", "package", "words")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LATE_SETTING = re.compile(r"[A-Z][A-Z0-9_]*=")
SETTING = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
INCLUDE = re.compile(r"include\s+(\S+)")
JOB_LINE = re.compile(r"^job: +(\d+) ", re.MULTILINE)
# a stage's folder, or that with a label (iridis/lib.sh)
LABELLED = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*=)?@(.+)", re.DOTALL)
FLAGS = "@flags"
MOST_NAMES = 6  # of stages that one waits for, beside it in the tree
AT_ONCE = 4  # stages that are asked at the same time; each starts a Python
NEW, DONE, FAILED, BLOCKED = "new", "done", "failed", "blocked"  # states of a stage that has no job


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
        raise UserError(f"unknown pipeline {table}; there are {' and '.join(table_names())}")
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


# asking and queueing


@dataclass(frozen=True)
class Call:
    """How the job.sh of a stage is called: with the flags of the command line and the folders of earlier
    trainings.
    """

    flags: Sequence[str]
    folders: Mapping[str, str]

    def arguments(self, stage: Stage) -> list[str]:
        """The words of a stage, with what begins with @ filled in."""
        filled: list[str] = []
        for word in stage.words:
            if word == FLAGS:
                filled += self.flags
            elif found := LABELLED.fullmatch(word):
                filled.append((found[1] or "") + self.folders[found[2]])
            else:
                filled.append(word)
        return filled

    def run(self, stage: Stage, *options: str, errors: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run the job.sh of a stage with these options before its own words. `errors`: where its stderr
        goes.
        """
        command = ["bash", str(IRIDIS / stage.package / "job.sh"), *options, *self.arguments(stage)]
        return subprocess.run(
            command,
            env=environment(stage),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            check=False,
        )

    def ask(self, stage: Stage, option: str) -> str:
        """The last line that job.sh answers. Raises UserError with its lines about what is wrong."""
        return self.answer(stage, option)[-1]

    def answer(self, stage: Stage, option: str) -> list[str]:
        """The lines that job.sh answers, at least one.

        Raises UserError with its lines about what is wrong.
        """
        done = self.run(stage, option, errors=subprocess.PIPE)
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            return lines
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        wrong = [line.partition("error: ")[2] for line in lines if "error: " in line]
        raise UserError(
            "\n".join(wrong or lines[-1:] or [f"{option}: code {done.returncode}, and no answer"])
        )


def environment(stage: Stage) -> dict[str, str]:
    """This process's environment under the settings of a stage."""
    values = dict(os.environ)
    for name, value in stage.settings:
        if value:
            values[name] = value
        else:
            values.pop(name, None)
    return values


def ask_all(stages: Sequence[Stage], ask: Callable[[Stage], Any]) -> dict[str, Any]:
    """The answer of each stage, several at a time. Raises UserError with a line for each problem and the
    stages that have it.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {stage.name: pool.submit(ask, stage) for stage in stages}
    answers: dict[str, Any] = {}
    problems: dict[str, list[str]] = {}
    for name, future in futures.items():
        try:
            answers[name] = future.result()
        except UserError as error:
            for line in str(error).splitlines():
                problems.setdefault(line, []).append(name)
    if problems:
        raise UserError("\n".join(f"{', '.join(names)}: {line}" for line, names in problems.items()))
    return answers


def experiment_folders(stages: Sequence[Stage], flags: Sequence[str]) -> dict[str, str]:
    """The folders of the trainings that words of other stages name; a training may itself start from an
    earlier one's.
    """
    used = {name for stage in stages for name in stage.uses}
    waiting = [stage for stage in stages if stage.name in used]
    folders: dict[str, str] = {}
    while waiting:
        ready = [stage for stage in waiting if folders.keys() >= set(stage.uses)]
        folders |= ask_all(ready, partial(Call(flags, dict(folders)).ask, option="--where"))
        waiting = [stage for stage in waiting if stage.name not in folders]
    return folders


def state(call: Call, stage: Stage) -> tuple[str, str | None]:
    """DONE, NEW, or the id of the job that the stage has in the queue; and the experiment that it trains,
    if any. Raises UserError.
    """
    *before, answer = call.answer(stage, "--state")
    experiment = next(
        (line.removeprefix("experiment ") for line in before if line.startswith("experiment ")), None
    )
    queued, _, job = answer.partition(" ")
    if queued == "queued" and job:
        return job, experiment
    if answer not in ("todo", "done"):
        raise UserError(f"{stage.package}/job.sh --state says {answer!r}")
    return NEW if answer == "todo" else DONE, experiment


def shared_experiments(stages: Sequence[Stage], experiments: Mapping[str, str | None]) -> list[str]:
    """A line for each stage that would train the experiment of another one: they would wait for each
    other, or mix their settings.
    """
    problems, trained_by = [], dict[str, Stage]()
    for stage in stages:
        folder = experiments[stage.name]
        first = trained_by.setdefault(folder, stage) if folder else stage
        if first is not stage:
            problems.append(
                f"{stage.place}: stage {stage.name} trains the experiment of stage {first.name}, {folder};"
                " give it a --name"
            )
    return problems


def queue(stages: Sequence[Stage], call: Call, states: dict[str, str]) -> list[str]:
    """Queue the stages that are NEW, each behind the jobs of those that it waits for, and put the results
    into `states`.

    Returns a line for each stage that should be queued and is not.
    """
    problems = []
    for stage in in_order(stages):
        if states[stage.name] != NEW:
            continue
        missing = [name for name in stage.after if states[name] in (FAILED, BLOCKED)]
        if missing:
            states[stage.name] = BLOCKED
            problems.append(f"stage {stage.name} is not queued: it waits for {', '.join(missing)}")
            continue
        jobs = [states[name] for name in stage.after if states[name] != DONE]
        print(f"=== {stage.name}", file=sys.stderr, flush=True)
        done = call.run(stage, *(["--after", ":".join(jobs)] if jobs else []))
        job = JOB_LINE.search(done.stdout)
        if done.returncode:
            states[stage.name] = FAILED
            problems.append(
                f"stage {stage.name} is not queued: {stage.package}/job.sh ended with code {done.returncode},"
                " see above"
            )
        else:
            states[stage.name] = job[1] if job else DONE  # it ran here, or turned out to be finished
    return problems


# showing it


def branches(
    stages: Sequence[Stage], parent: str | None = None, stem: str = ""
) -> Iterator[tuple[str, Stage]]:
    """Each stage once, below the last one that it waits for, with its name after the lines of the tree."""
    below = [stage for stage in stages if stage.parent == parent]
    for stage in below:
        knot, bar = ("└─ ", "   ") if stage is below[-1] else ("├─ ", "│  ")
        if parent is None:
            knot = bar = ""
        yield f"{stem}{knot}{stage.name}", stage
        yield from branches(stages, stage.name, stem + bar)


def tree(stages: Sequence[Stage], states: Mapping[str, str]) -> list[str]:
    """The lines that show a graph: name, state and package of each stage, and what it waits for if that is
    not one stage.
    """
    rows = [("stage", "state", "package")]
    for label, stage in branches(stages):
        rows.append((label, states[stage.name], stage.package + _after(stage)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{label:<{widths[0]}}  {state:<{widths[1]}}  {package}" for label, state, package in rows]


def _after(stage: Stage) -> str:
    """The stages that one waits for, where the tree does not show that."""
    if len(stage.after) < 2:
        return ""
    return (
        ", after"
        f" {', '.join(stage.after) if len(stage.after) <= MOST_NAMES else f'{len(stage.after)} stages'}"
    )


def run(argv: Sequence[str]) -> int:
    separator = argv.index("--") if "--" in argv else len(argv)
    parser = Arguments(prog="pipeline", description="Show or queue a graph of jobs.")
    parser.add_argument(
        "table",
        nargs="?",
        default=DEFAULT,
        help=f"{', '.join(table_names())}, or a file that ends in .tsv [{DEFAULT}]",
    )
    parser.add_argument(
        "--queue",
        action="store_true",
        help="queue what is to do; without SLURM each job.sh would run here instead",
    )
    wanted = parser.parsed(argv[:separator])
    stages, flags = load(wanted.table), argv[separator + 1 :]
    call = Call(flags, experiment_folders(stages, flags))
    answers = ask_all(stages, partial(state, call))
    shared = shared_experiments(stages, {name: experiment for name, (_, experiment) in answers.items()})
    if shared:
        raise UserError("\n".join(shared))
    states = {name: state for name, (state, _) in answers.items()}
    problems = queue(stages, call, states) if wanted.queue else []
    print(*tree(stages, states), sep="\n", flush=True)
    if problems:
        raise UserError("\n".join(problems))
    return 0


def main(argv: Sequence[str]) -> int:
    """Problems are printed as the job scripts print theirs, between whose lines they are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal that cannot show the lines of the tree still shows the names
        sys.stdout.reconfigure(errors="replace")
    try:
        return run(argv)
    except UserError as error:
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(guarded("pipeline", lambda: main(sys.argv[1:])))
