"""A graph of jobs from a table: its stages, what each waits for, and their states. Needs no torch.

    python -m iridis.graph [TABLE] [-- FLAGS]           # check the table, ask for every state, print the tree
    python -m iridis.graph [TABLE] --queue [-- FLAGS]   # also queue what is to do; called by
                                                        # bash iridis/pipeline.sh where there is SLURM
    python -m iridis.graph [TABLE] --local [-- FLAGS]   # run it here instead; called where there is none

TABLE is the name of a file in iridis/graphs/, or a path to a file of your own that ends in .tsv. Its lines
have four columns, separated by tabs; `-` stands for an empty one, `#` begins a line of comment:

    stage      a name
    after      the stages that it waits for, separated by spaces or commas
    package    a folder of iridis/ that holds a job.sh
    words      as in a shell: settings for the environment (NAME=VALUE, or NAME= to unset one), then arguments
               for job.sh. `@STAGE` is the experiment folder of an earlier training; `@flags` are the FLAGS of
               this command line.

A line `include TABLE` adds the stages of another table (a path is relative to this table's folder). Exit code
2: a line for each problem of the table, or for each stage that could not be asked or queued, or that failed
here; 83: what ran here was asked to end, and the same command goes on.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from config import Arguments, guarded
from errors import STOPPED, UserError
from iridis.stages import BLOCKED, DONE, FAILED, INTERRUPTED, NEW, Running, Stages, start, thread_share
from iridis.table import DEFAULT, FLAGS, LABELLED, Stage, in_order, load, table_names
from iridis.table import is_training as is_training

IRIDIS = Path(__file__).parent
JOB_LINE = re.compile(r"^job: +([\d:]+) ", re.MULTILINE)
MOST_NAMES = 6  # of stages that one waits for, beside it in the tree
AT_ONCE = 4  # stages that are asked at the same time; each starts a Python


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

    def command(self, stage: Stage, *options: str) -> list[str]:
        """The call of a stage's job.sh, with these options before its own words."""
        return ["bash", str(IRIDIS / stage.package / "job.sh"), *options, *self.arguments(stage)]

    def run(self, stage: Stage, *options: str, errors: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run the job.sh of a stage. `errors`: where its stderr goes."""
        return subprocess.run(
            self.command(stage, *options),
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


def run_here(stages: Sequence[Stage], call: Call, states: dict[str, str], at_once: int) -> list[str]:
    """Run the stages that are NEW on this machine and put the results into `states`.

    Returns a line for each that is not done.
    """
    known = {stage.name: stage for stage in stages}

    def launch(name: str) -> Running:
        stage = known[name]
        env = environment(stage)
        if at_once > 1:
            env.setdefault("OMP_NUM_THREADS", str(thread_share(at_once)))
        return start(name, call.command(stage, "--local"), env)

    after = {stage.name: stage.after for stage in stages}
    return Stages(states, after, launch, at_once).run()


def _parser() -> Arguments:
    parser = Arguments(prog="pipeline", description="Show, queue or run a graph of jobs.")
    parser.add_argument(
        "table",
        nargs="?",
        default=DEFAULT,
        help=f"{', '.join(table_names())}, or a file that ends in .tsv [{DEFAULT}]",
    )
    parser.add_argument(
        "--queue",
        action="store_true",
        help="queue what is to do",
    )
    parser.add_argument("--local", action="store_true", help="run what is to do on this machine")
    parser.add_argument("--at_once", type=int, default=1, help="stages that run here at a time [1]")
    return parser


def run(argv: Sequence[str]) -> int:
    separator = argv.index("--") if "--" in argv else len(argv)
    wanted = _parser().parsed(argv[:separator])
    if wanted.at_once < 1:
        raise UserError(f"--at_once must be at least 1, not {wanted.at_once}")
    stages, flags = load(wanted.table), argv[separator + 1 :]
    call = Call(flags, experiment_folders(stages, flags))
    answers = ask_all(stages, partial(state, call))
    shared = shared_experiments(stages, {name: experiment for name, (_, experiment) in answers.items()})
    if shared:
        raise UserError("\n".join(shared))
    states = {name: state for name, (state, _) in answers.items()}
    problems: list[str] = []
    if wanted.queue:
        problems = queue(stages, call, states)
    elif wanted.local and NEW in states.values():
        print(*tree(stages, states), sep="\n", flush=True)
        print(
            f"=== the stages run here, {wanted.at_once} at a time; --dry-run only shows them", file=sys.stderr
        )
        problems = run_here(stages, call, states, wanted.at_once)
    print(*tree(stages, states), sep="\n", flush=True)
    if INTERRUPTED in states.values() and FAILED not in states.values():
        report(problems)
        return STOPPED
    if problems:
        raise UserError("\n".join(problems))
    return 0


def report(problems: Sequence[str]) -> None:
    """Problems are printed as the job scripts print theirs, between whose lines they are."""
    print(*(f"error: {line}" for line in problems), sep="\n", file=sys.stderr)


def main(argv: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal that cannot show the lines of the tree still shows the names
        sys.stdout.reconfigure(errors="replace")
    try:
        return run(argv)
    except UserError as error:
        report(str(error).splitlines())
        return 2


if __name__ == "__main__":
    sys.exit(guarded("pipeline", lambda: main(sys.argv[1:])))
