"""Simulate genomes: a tree sequence (.trees) for each number, the same bytes wherever and by however many
processes it is simulated, for one version of msprime.

    python -m data.genomes.simulate --scenario constant --num_samples 500 --data_dir mine/base_dataset
    python -m data.genomes.simulate --scenario llm-grid --data_dir mine/llm    # a folder for each cell
    python -m data.genomes.simulate --scenario stdpopsim:homsap_map --data_dir mine/homsap
    python -m data.genomes.simulate --scenario tiny --data_dir mine            # or paper: the published data
    python -m data.genomes.simulate --scenario constant --num_samples 2000000 --shards 100 --shard 7

Files are ts_00000000.trees, ts_00000001.trees and so on; simulation N has the seed N everywhere. A file
appears when it is complete: after a kill the same command simulates what is missing. simulation.json says
what a folder holds, and other simulations are refused there. tiny and paper also get a mask, accessible.npy,
unless there is one. The shards of a budget run at the same time, on any machines that share the folder; in an
array of SLURM jobs the number of the task is the shard.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from config.programs import Arguments, guarded, with_underscores
from data.bins import DEFAULT_DATA_DIR
from data.genomes.accessibility import LENGTHS, NAME, write_mask
from data.genomes.pool import results_of, time_left
from data.genomes.scenarios import (
    COLLECTIONS,
    SINGLE,
    Scenario,
    check,
    scenarios_of,
    seed_of,
    simulate,
    versions,
)
from data.genomes.tree_file import is_whole, write_trees
from errors import UserError
from files import is_of_a_place, locked, read_json, write_json

DESCRIPTION = "simulation.json"
FILE = re.compile(r"ts_(\d{8})\.trees")
LEFTOVER = re.compile(r"\.ts_(\d{8})\.trees\.\d+\.tmp")
LARGEST = 10**8  # simulations of a scenario: eight digits
LINE_SECONDS, FIRST_SECONDS = 10.0, 2.0
SHOWN_FAILED = 5
MOST_FAILED = 20  # then it stops
# of a single scenario; the cells of a grid have their own
SETTINGS = (
    *("population_size", "mutation_rate", "recombination_rate"),
    *("magnitude", "migration_rate", "selection", "position"),
)

# what is to be simulated


@dataclass(frozen=True)
class Job:
    """One simulation and the file that it goes to."""

    scenario: Scenario
    number: int
    path: Path


def folder_of(root: Path, scenario: Scenario) -> Path:
    return root / scenario.folder


def describe(scenario: Scenario) -> dict[str, Any]:
    """What simulation.json holds."""
    return {"simulation": scenario.facts(), "versions": versions(scenario)}


def refuse_others(folder: Path, scenario: Scenario) -> None:
    """Raises UserError where a folder holds simulations of another scenario or version."""
    there = read_json(folder / DESCRIPTION)
    wanted = describe(scenario)
    if there is None:
        if folder.is_dir() and files_in(folder):
            raise UserError(
                f"{folder} has simulations, but no {DESCRIPTION} that says which: give another --data_dir"
            )
        return
    if there == wanted:
        return
    differences = []
    for part, values in wanted.items():
        found = there.get(part)
        known = found if isinstance(found, dict) else {}
        differences += [
            f"{name} {known.get(name)} there, {value} here"
            for name, value in values.items()
            if known.get(name) != value
        ]
    raise UserError(
        f"{folder} holds other simulations: {', '.join(differences) or 'see its ' + DESCRIPTION}; give"
        " another --data_dir"
    )


def files_in(folder: Path) -> dict[int, Path]:
    """The files of a folder that have the name of a simulation, by its number."""
    found = {}
    for entry in os.scandir(folder):
        match = FILE.fullmatch(entry.name)
        if match:
            found[int(match[1])] = Path(entry.path)
    return found


@dataclass(frozen=True)
class Todo:
    """A shard's simulations that are to do, of how many, and how many of them are there as damaged files."""

    jobs: list[Job]
    total: int
    damaged: int

    def told(self, shard: int, shards: int) -> str:
        line = f"{self.total - len(self.jobs):,} of {self.total:,} simulations are there already"
        if shards > 1:
            line += f" (shard {shard} of {shards})"
        if self.damaged:
            line += f"; {self.damaged:,} are cut short and are simulated again"
        return line


def missing(root: Path, scenarios: Sequence[Scenario], shard: int, shards: int) -> Todo:
    """Simulations are dealt to the shards in turn, so that each has its share of the slow scenarios."""
    jobs = []
    before = total = damaged = 0
    for scenario in scenarios:
        folder = folder_of(root, scenario)
        there = files_in(folder) if folder.is_dir() else {}
        first = (shard - before) % shards
        for number in range(first, scenario.count, shards):
            total += 1
            is_there = number in there
            if is_there and is_whole(there[number]):
                continue
            damaged += is_there
            jobs.append(Job(scenario, number, folder / f"ts_{number:08d}.trees"))
        before += scenario.count
    return Todo(jobs, total, damaged)


# simulating


def prepare_folder(root: Path, scenario: Scenario) -> None:
    folder = folder_of(root, scenario)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DESCRIPTION).exists():
        write_json(folder / DESCRIPTION, describe(scenario))


def remove_leftovers(jobs: Sequence[Job]) -> None:
    """Remove what kills have left of these simulations; others may be in the making elsewhere."""
    mine = {job.path for job in jobs}
    for folder in {path.parent for path in mine}:
        for entry in os.scandir(folder):
            match = LEFTOVER.fullmatch(entry.name)
            if match and folder / f"ts_{match[1]}.trees" in mine:
                Path(entry.path).unlink(missing_ok=True)


@cache
def _record(scenario: Scenario) -> dict[str, Any]:
    """The provenance of a file, but for the number. In the form that tskit asks for."""
    return {
        "schema_version": "1.0.0",
        "software": {"name": "data.genomes.simulate", "version": "1"},
        "environment": {"libraries": {name: {"version": is_} for name, is_ in versions(scenario).items()}},
    }


def carry_out(job: Job) -> str | None:
    """Simulate and write a file. Returns what went wrong with the simulation, None where nothing did.

    Raises OSError where the file cannot be written.
    """
    try:
        trees = simulate(job.scenario, job.number)
    except OSError as error:
        if is_of_a_place(error):
            raise
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # the simulator's own have no common class
        return f"{type(error).__name__}: {error}"
    parameters = {"command": "simulate", "number": job.number, **job.scenario.facts()}
    if job.scenario.kind != "stdpopsim":
        parameters["msprime_seed"] = seed_of(job.number)
    write_trees(job.path, trees, {**_record(job.scenario), "parameters": parameters})
    return None


class Progress:
    """A line every few seconds, the first one sooner, and the simulations that failed."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.began = time.monotonic()
        self.printed = self.began - LINE_SECONDS + FIRST_SECONDS
        self.done = 0
        self.failed: list[str] = []

    def add(self, job: Job, problem: str | None) -> None:
        """Raises UserError where too many have failed."""
        if problem is None:
            self.done += 1
        else:
            self.failed.append(f"{job.path}: {problem}")
        if len(self.failed) >= MOST_FAILED:
            self.raise_failed(" already, so it stops")
        now = time.monotonic()
        if now - self.printed >= LINE_SECONDS:
            self.printed = now
            seconds, ended = now - self.began, self.done + len(self.failed)
            left = time_left(seconds, ended, self.total)
            say(f"{self.done:,} of {self.total:,}, {self.done / seconds:.1f} a second, {left} left")

    def raise_failed(self, how: str = "") -> None:
        """Raises UserError that shows the first simulations that failed; does nothing where none did."""
        if self.failed:
            shown = self.failed[:SHOWN_FAILED]
            raise UserError("\n".join([*shown, f"{len(self.failed)} simulations failed{how}"]))


def begins(jobs: Sequence[Job], processes: int) -> str:
    """A line about the work to come."""
    sizes = {(job.scenario.sequence_length, job.scenario.individuals) for job in jobs}
    each = ", or ".join(f"{length:,.0f} bp of {individuals}" for length, individuals in sorted(sizes))
    return (
        f"{len(jobs):,} to simulate, with {processes} processes, each {each} individuals; what is done is"
        " kept after Ctrl-C"
    )


def simulate_all(jobs: Sequence[Job], processes: int) -> None:
    """Raises UserError where simulations failed, once the others are done."""
    progress = Progress(len(jobs))
    with closing(results_of(carry_out, jobs, processes, "--num_processes")) as results:
        for job, problem in results:
            progress.add(job, problem)
    progress.raise_failed()


# the command


def say(line: str) -> None:
    print(line, flush=True)


def _parser() -> Arguments:
    parser = Arguments(prog="data.genomes.simulate", description="Simulate genomes.", allow_abbrev=False)

    def add(*names: str, of: type = float, **how: Any) -> None:
        parser.add_argument(*(f"--{name}" for name in names), type=of, **{"default": None, **how})

    names = ", ".join([*SINGLE, *COLLECTIONS, "stdpopsim:ID"])
    add("scenario", of=str, help=f"{names} [with --num_samples: constant]")
    add("data_dir", of=str, help=f"folder of the files [{DEFAULT_DATA_DIR}/genomes/SCENARIO]")
    add("num_samples", of=int, help="simulations of each scenario [as many as the published data have]")
    add("num_processes", of=int, help="processes [all cores]")
    add("n_individuals", of=int, dest="individuals", help="diploid individuals sampled [25; tiny: 5]")
    add("sequence_length", help="bp [1e6; tiny: 1e5]")
    add("ne", "population_size", dest="population_size", help="individuals of the population [by scenario]")
    add("mu", "mutation_rate", dest="mutation_rate", help="mutations per bp and generation [1.29e-8]")
    add(
        "r",
        "recombination_rate",
        dest="recombination_rate",
        help="recombinations per bp and generation [1.28e-8]",
    )
    add("magnitude", help="of sawtooth [3]")
    add("migration_rate", "migration", dest="migration_rate", help="between islands [0.1]")
    add("selection", help="coefficient, of sweep [0.1]")
    add("position", help="of sweep, in bp [the middle]")
    add("shards", of=int, default=1, help="parts that the simulations are dealt to [1]")
    add("shard", of=int, help="the part to simulate, from 0 [SLURM_ARRAY_TASK_ID]")
    parser.add_argument("--dry_run", action="store_true", help="check, tell how many are there, and stop")
    parser.add_argument(
        "--state", action="store_true", help="only tell whether all is simulated: done or todo"
    )
    return parser


def chosen_scenarios(args: Namespace) -> list[Scenario]:
    """The scenarios with the settings of the command line. Raises UserError."""
    scenarios = scenarios_of(args.scenario)
    sampled = {"individuals": args.individuals, "sequence_length": args.sequence_length}
    settings = {name: getattr(args, name) for name in SETTINGS}
    given = {name: value for name, value in settings.items() if value is not None}
    if args.scenario in COLLECTIONS and given:
        raise UserError(f"{_flags(given)}: {args.scenario} has its own; name a single scenario")
    unused = [name for name in given if getattr(scenarios[0], name) is None]
    if scenarios[0].kind == "stdpopsim" and "population_size" in unused:
        unused.remove("population_size")
    if unused:
        raise UserError(f"{_flags(unused)} has no effect on {args.scenario}")
    if scenarios[0].kind == "sweep" and args.scenario not in COLLECTIONS and args.sequence_length:
        given.setdefault("position", args.sequence_length / 2)
    given |= {name: value for name, value in sampled.items() if value is not None}
    if args.num_samples is not None:
        given["count"] = args.num_samples
    return [replace(scenario, **given) for scenario in scenarios]


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


def problems_of(args: Namespace) -> list[str]:
    """A line for each value that cannot be right."""
    lines = []
    for flag, value, least in (
        ("num_samples", args.num_samples, 1),
        ("num_processes", args.num_processes, 1),
        ("n_individuals", args.individuals, 1),
        ("sequence_length", args.sequence_length, 1),
        ("shards", args.shards, 1),
        ("shard", args.shard, 0),
        *((name, getattr(args, name), 0) for name in SETTINGS),
    ):
        if value is not None and not (math.isfinite(value) and value >= least):
            lines.append(f"--{flag} must be at least {least}, not {value}")
    if args.num_samples is not None and args.num_samples > LARGEST:
        lines.append(f"--num_samples must be at most {LARGEST:,}: names of files have eight digits")
    if math.isfinite(args.sequence_length or 0) and (args.sequence_length or 0) % 1:
        lines.append(f"--sequence_length must be a whole number, not {args.sequence_length}")
    if args.shard is not None and args.shard >= args.shards:
        lines.append(f"--shard must be below --shards, {args.shards}")
    return lines


def impossible(scenario: Scenario) -> str | None:
    """What a scenario's settings say that cannot be simulated, or None."""
    for name in ("population_size", "magnitude", "selection"):
        if getattr(scenario, name) == 0:
            return f"--{name} must be above 0"
    if scenario.position is not None and not 0 < scenario.position < scenario.sequence_length:
        return f"--position must be within the sequence, of {scenario.sequence_length:g} bp"
    return None


def parse(argv: Sequence[str] | None) -> Namespace:
    """The command line. Raises UserError with a line for each problem."""
    args = _parser().parsed(with_underscores(sys.argv[1:] if argv is None else argv))
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if args.shard is None and args.shards > 1:
        if task is None or not task.isdecimal():
            raise UserError("--shards needs --shard, or an array of SLURM jobs whose tasks count from 0")
        args.shard = int(task)
    lines = problems_of(args)
    if lines:
        raise UserError("\n".join(lines))
    args.shard = args.shard or 0
    return args


def run(args: Namespace) -> int:
    """Simulate what the command line asks for. Raises UserError."""
    is_open = args.scenario is None and args.num_samples is None
    args.scenario = args.scenario or "constant"
    scenarios = chosen_scenarios(args)
    problem = impossible(scenarios[0])
    if problem:
        raise UserError(problem)
    if is_open:
        names = ", ".join([*SINGLE, *COLLECTIONS, "stdpopsim:ID"])
        raise UserError(f"--scenario is needed, or --num_samples of constant: {names}")
    root = Path(args.data_dir or DEFAULT_DATA_DIR / "genomes" / args.scenario.replace(":", "_"))
    todo = missing(root, scenarios, args.shard, args.shards)
    has_mask = args.scenario not in LENGTHS or (root / NAME).exists()
    is_done = has_mask and not todo.jobs
    if args.state and not is_done:
        say("todo")
        return 0
    for scenario in scenarios:
        check(scenario)
        refuse_others(folder_of(root, scenario), scenario)
    if args.state:
        say("done")
        return 0
    say(f"{root}: {todo.told(args.shard, args.shards)}")
    if args.dry_run or is_done:
        return 0
    root.mkdir(parents=True, exist_ok=True)
    lock = root / f"shard_{args.shard}_of_{args.shards}.lock"
    with locked(lock, f"{root} is being filled by another process", say):
        if not has_mask:
            write_mask(root, LENGTHS[args.scenario])
        for scenario in scenarios:
            prepare_folder(root, scenario)
        remove_leftovers(todo.jobs)
        processes = min(args.num_processes or len(os.sched_getaffinity(0)), len(todo.jobs))
        say(begins(todo.jobs, processes))
        began = time.monotonic()
        simulate_all(todo.jobs, processes)
    say(f"{len(todo.jobs):,} simulated in {time.monotonic() - began:.1f} s")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> int:
        try:
            return run(parse(argv))
        except KeyboardInterrupt:
            print(
                "data.genomes.simulate: interrupted; the same command goes on where it was", file=sys.stderr
            )
            return 130

    return guarded("data.genomes.simulate", work)


if __name__ == "__main__":
    sys.exit(main())
