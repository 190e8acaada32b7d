"""Which cells of a sweep are to be trained, and their run folders, in one go; needs no torch.

    python -m iridis.cells SWEEP [--slurm] [--processes N --partition P --time T --nodes N --gpus N --no-data]
        [--package DIR [--pin]]                      # check all cells; with --package make DIR/run_N for them
    python -m iridis.cells SWEEP --state             # for iridis/graph.py: done, "queued IDS", or todo
    python -m iridis.cells --task EXPERIMENT         # the task that is queued for a folder, if there is one
    python -m iridis.cells --ended ARRAY --links DIR # what became of an array that SLURM has forgotten

stdout has lines NAME=VALUE for iridis/sweep/job.sh:

    SWEEP_NAME      of the sweep
    RUN_DIR         with --package; cell_NUMBER in it holds experiment.txt, words (of main.py, each ended by a
                    NUL) and command.txt
    ARRAYS          OFFSET:TASKS:FOLDER of each array, separated by spaces, as in 0:0-3,7:cell_%a; empty:
                    nothing is to do. FOLDER: of a task, with sbatch's pattern
    LEFT_OUT        how many cells are refused
    QUEUED          ids of jobs that have cells of this sweep already, joined by :
    LEAD            how many seconds before its time limit a job should be asked to stop

Cells are finished, refused (by config, by their data), in the queue, being trained, or to do. A line for what
is refused and for what failed before goes to stderr; the others are trained. Exit code 2: nothing can be.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import config
from config.places import places
from config.sweep import Cell, Sweep, read_sweep
from errors import UserError
from files import write_json
from iridis import paths
from iridis.arrays import CELLS, experiments, failures, mark_of, ranges
from iridis.preflight import is_done, lead_seconds, partition_problems, seconds_of, slurm
from optim.done import wanted_data
from optim.lock import holder
from optim.names import STOP
from optim.reader import Record, printed

FINISHED, QUEUED, HELD, REFUSED, TO_TRAIN = "finished", "queued", "held", "refused", "to train"
BLOCK = 1000  # most cells of an array; the others' numbers have as many digits more
SHOWN = 10  # commands of a dry run
IRIDIS = Path(__file__).parent


@dataclass(frozen=True)
class Standing:
    """A cell and where it stands. note: the job that has it, or why it is refused, or failed before."""

    cell: Cell
    state: str
    note: str = ""

    @property
    def folder(self) -> Path:
        folder = self.cell.resolved().folder
        assert folder is not None
        return folder.resolve()


def queue() -> dict[str, str]:
    """Ids of the user's jobs by the mark of the experiment that they train, from one question to SLURM."""
    rows = [line.split("|", 1) for line in slurm("squeue", "--me", "-a", "-h", "-r", "-o", "%i|%j")]
    found = {name.rpartition("-")[2]: job for job, name in rows if name.startswith("train-")}
    tasks = experiments(IRIDIS, {job.partition("_")[0] for job, _ in rows if "_" in job})
    return found | {mark_of(tasks[job]): job for job, _ in rows if job in tasks}


def standing(cell: Cell, jobs: Mapping[str, str], failed: Mapping[Path, str], wanted: Namespace) -> Standing:
    """jobs: as `queue` gives them. failed: as `failures` does."""
    args, folder = cell.resolved().args, cell.resolved().folder
    if args is None or folder is None:
        return Standing(cell, REFUSED, "; ".join(cell.resolved().problems))
    record = Record(folder, problems=[])  # main.py reports damage when it meets it
    problems: list[str] = []
    if is_done(record, args, False, problems):
        return Standing(cell, FINISHED)
    job = jobs.get(mark_of(folder.resolve()))
    if job is not None:
        return Standing(cell, QUEUED, job)
    who = holder(folder / "lock") if (folder / "lock").exists() else None
    if who is not None:
        return Standing(cell, HELD, who)
    if (folder / STOP).exists():
        problems.append(f"{folder / STOP} keeps this experiment stopped; remove it first")
    try:
        config.check_world_size(args, wanted.processes)
        problems += [] if wanted.no_data else wanted_data(args).lacking()
    except UserError as error:
        problems += str(error).splitlines()
    if problems:
        return Standing(cell, REFUSED, "; ".join(map(config.as_written(cell.words), problems)))
    return Standing(cell, TO_TRAIN, failed.get(folder.resolve(), ""))


def of_cells(standings: Sequence[Standing]) -> str:
    if len(standings) == 1:
        (only,) = standings
        return f"cell {only.cell.number} ({only.cell.title})"
    return f"cells {ranges(each.cell.number for each in standings)}"


def lines_of(standings: Sequence[Standing], state: str) -> list[str]:
    """A line for each note, with the cells that have it."""
    by_note: dict[str, list[Standing]] = {}
    for each in standings:
        if each.state == state and each.note:
            by_note.setdefault(each.note, []).append(each)
    return [f"{of_cells(same)}: {note}" for note, same in by_note.items()]


def report(sweep: Sweep, standings: Sequence[Standing]) -> None:
    """For people, on stderr."""
    lines = [f"note: {line}" for line in sweep.notes]
    lines += [f"refused: {line}" for line in lines_of(standings, REFUSED)]
    lines += [f"note: being trained by another: {line}" for line in lines_of(standings, HELD)]
    lines += [f"note: failed before, and tried again: {line}" for line in lines_of(standings, TO_TRAIN)]
    states = [each.state for each in standings]
    words = {FINISHED: "finished", QUEUED: "in the queue", HELD: "being trained", REFUSED: "refused"}
    counts = [f"{states.count(state)} {word}" for state, word in words.items() if state in states]
    counts.append(f"{states.count(TO_TRAIN)} to do")
    print(*lines, f"sweep {sweep.name}: {len(states)} cells: {', '.join(counts)}", sep="\n", file=sys.stderr)


def block_size(largest: int) -> int:
    """Cells of an array: a power of ten, so that a cell's number is the array's digits and the task's.

    Raises UserError where the cluster takes no arrays. largest: number of the last cell.
    """
    if largest == 0:
        return BLOCK
    lines = [
        line.split("=") for line in slurm("scontrol", "show", "config") if line.startswith("MaxArraySize")
    ]
    most = int(lines[0][1]) if lines else BLOCK
    if most < 2:
        raise UserError(
            "this cluster takes no job arrays (MaxArraySize); run the cells one after another: --local"
        )
    size = BLOCK
    while size > most:
        size //= 10
    return size


def arrays(numbers: Sequence[int], size: int) -> str:
    """OFFSET:TASKS:FOLDER of each array of at most `size` tasks."""
    found = []
    for start in sorted({number - number % size for number in numbers}):
        tasks = ranges(n - start for n in numbers if start <= n < start + size)
        digits = len(str(size)) - 1
        # the digits of the array, and those of the task, with zeros before them
        folder = f"cell_{start // size}" + (f"%{digits}a" if digits else "")
        found.append(f"{start}:{tasks}:{folder if start else 'cell_%a'}")
    return " ".join(found)


def make_run(sweep: Sweep, standings: Sequence[Standing], package: Path, is_pinned: bool) -> Path:
    """The next free run_N of a package, with the folders of the cells to do.

    is_pinned: their words will be read in another folder than this one.
    """
    number = 0
    while True:
        run = package / f"run_{number}"
        try:
            run.mkdir()
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot make {run}: {error.strerror}; work in a clone of your own") from None
    todo = [each for each in standings if each.state == TO_TRAIN]
    whole = paths.whole if is_pinned else list
    frozen = []
    for each in todo:
        cell, words = each.cell, whole(each.cell.words)
        place = run / f"cell_{cell.number}"
        place.mkdir()
        # nobody reads these before the array is submitted, and 500 cells would sync 3000 times
        (place / "words").write_text("".join(f"{word}\0" for word in words))
        (place / "command.txt").write_text(command(words) + "\n")
        (place / "experiment.txt").write_text(f"{each.folder}\n")
        frozen.append(
            {"number": cell.number, "label": cell.title, "words": words, "experiment": str(each.folder)}
        )
    content = {
        "sweep": str(sweep.path),
        "name": sweep.name,
        "cells": frozen,
        "of": len(standings),
        "finished": sum(each.state == FINISHED for each in standings),
        "left_out": lines_of(standings, REFUSED),
    }
    write_json(run / CELLS, content)
    return run


def ended(array: str, links: Path) -> str:
    """COMPLETED where all experiments of an array are finished but for those that another job goes on with,
    else UNFINISHED. links: folder of files that name a job's successor.
    """
    tasks = experiments(IRIDIS, [array]).items()
    left = [task for task, folder in tasks if not Record(folder, problems=[]).finished()]
    is_over = tasks and all((links / task).exists() for task in left)
    return "COMPLETED" if is_over else "UNFINISHED"


def state(standings: Sequence[Standing]) -> str:
    if any(each.state in (TO_TRAIN, REFUSED, HELD) for each in standings):
        return "todo"
    return f"queued {jobs_of(standings)}" if jobs_of(standings) else "done"


def jobs_of(standings: Sequence[Standing]) -> str:
    """Jobs that have cells, arrays as a whole, joined as for --after."""
    ids = [each.note.partition("_")[0] for each in standings if each.state == QUEUED]
    return ":".join(dict.fromkeys(ids))


def _parser() -> config.Arguments:
    parser = config.Arguments(prog="iridis.cells", description="Which cells of a sweep are to be trained.")
    parser.add_argument("sweep", type=Path, nargs="?")
    parser.add_argument("--package", type=Path, help="make a run folder in it")
    parser.add_argument("--partition")
    parser.add_argument("--time")
    for name in ("nodes", "gpus", "processes"):
        parser.add_argument(f"--{name}", type=int, default=0 if name == "gpus" else 1)
    parser.add_argument("--no-data", action="store_true", help="a job before this one prepares the data")
    parser.add_argument("--pin", action="store_true", help="words will be read in another folder")
    parser.add_argument("--state", action="store_true")
    parser.add_argument("--slurm", action="store_true", help="ask the queue")
    parser.add_argument("--task", type=Path, metavar="EXPERIMENT")
    parser.add_argument("--ended", metavar="ARRAY")
    parser.add_argument("--links", type=Path, default=Path())
    return parser


def plan(wanted: Namespace, sweep: Sweep, standings: Sequence[Standing]) -> dict[str, object]:
    """Makes the run folder, where it is asked for and something is to do. Raises UserError where nothing can
    be trained.
    """
    report(sweep, standings)
    todo = [each for each in standings if each.state == TO_TRAIN]
    if not todo and {each.state for each in standings} == {REFUSED}:
        raise UserError(f"{sweep.path}: every cell is refused, see above")
    answer: dict[str, object] = {"SWEEP_NAME": sweep.name, "QUEUED": jobs_of(standings)}
    answer["LEFT_OUT"] = sum(each.state == REFUSED for each in standings)
    if todo:
        numbers = [each.cell.number for each in todo]
        size = BLOCK if wanted.partition is None else block_size(numbers[-1])
        leads = [lead_seconds(Record(each.folder, problems=[]), wanted.time) for each in todo]
        answer |= {"ARRAYS": arrays(numbers, size), "LEAD": max(leads)}
        if wanted.package is not None:
            answer["RUN_DIR"] = make_run(sweep, standings, wanted.package, wanted.pin)
        else:
            print(*commands(todo), sep="\n", file=sys.stderr)
    return answer


def commands(todo: Sequence[Standing]) -> list[str]:
    """For a dry run: what the first cells run."""
    lines = [
        f"would train: cell {each.cell.number} ({each.cell.title}): {command(each.cell.words)}"
        for each in todo[:SHOWN]
    ]
    return lines + [f"would train: {len(todo) - SHOWN} more cells"] * (len(todo) > SHOWN)


def command(words: Sequence[str]) -> str:
    return shlex.join(["python", "main.py", *words])


def main(argv: Sequence[str]) -> int:
    wanted = _parser().parsed(argv)
    if wanted.ended is not None:
        print(printed({"JobState": ended(wanted.ended, wanted.links)}))
        return 0
    if wanted.task is not None:
        print(queue().get(mark_of(wanted.task), ""))
        return 0
    if wanted.sweep is None:
        raise UserError("say which sweep: bash iridis/sweep/job.sh SWEEP.json")
    sweep = read_sweep(wanted.sweep, places())
    if wanted.time is not None:
        seconds_of(wanted.time)
    if wanted.partition is not None:
        problems = partition_problems(wanted.partition, wanted.time, wanted.nodes, wanted.gpus)
        if problems:
            raise UserError("\n".join(problems))
    jobs = queue() if wanted.slurm else {}
    stands = partial(standing, jobs=jobs, failed=failures(IRIDIS), wanted=wanted)
    standings = [*map(stands, sweep.cells)]
    if wanted.state:
        print(state(standings))
        return 0
    print(printed(plan(wanted, sweep, standings)))
    return 0


if __name__ == "__main__":
    sys.exit(config.guarded("sweep", lambda: main(sys.argv[1:])))
