"""Train the cells of a run folder on this machine, each line behind its cell's name; for iridis/sweep/job.sh.

    python -m iridis.cells_here RUN [--at_once N] [--processes N] [--gpus N]

RUN is made by iridis/cells.py. Exit code 0: all cells of the sweep are finished; 1: a line for each that
failed or was refused; 83: asked to end, and the same command goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config import Arguments, guarded
from errors import STOPPED
from files import read_json
from iridis.arrays import CELLS, cells_of
from iridis.stages import INTERRUPTED, NEW, Running, Stages, start, thread_share
from optim.outcome import OUTCOME, read_outcome


def train(
    run: Path, cells: Sequence[Mapping[str, Any]], at_once: int, processes: int, gpus: int
) -> list[str]:
    """Train cells, at most `at_once` at a time.

    run: their run folder. processes: of each. gpus: of this machine, which are dealt to those that run.
    Returns the names of those that were asked to end, or have not begun.
    """
    by_name = {cell["label"]: cell for cell in cells}
    slots: dict[str, int] = {}
    torchrun = ("-m", "distributed.torchrun", "--standalone", "--nproc_per_node", str(processes))

    def launch(name: str) -> Running:
        taken = {slots[stage.name] for stage in stages.running}
        slots[name] = next(slot for slot in range(at_once) if slot not in taken)
        place = place_of(run, by_name[name])
        files = ("--stop_file", str(place / "stop"), "--outcome_file", str(place / OUTCOME))
        env = {"OMP_NUM_THREADS": str(thread_share(at_once * processes)), **os.environ}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = devices(slots[name], processes, gpus)
        launcher = torchrun if processes > 1 else ()
        command = ("python", *launcher, "main.py", *by_name[name]["words"], *files)
        return start(name, command, env)

    stages = Stages(dict.fromkeys(by_name, NEW), dict.fromkeys(by_name, ()), launch, at_once)
    stages.run()
    return [name for name, state in stages.states.items() if state in (INTERRUPTED, NEW)]


def place_of(run: Path, cell: Mapping[str, Any]) -> Path:
    return run / f"cell_{cell['number']}"


def devices(slot: int, processes: int, gpus: int) -> str:
    """GPUs of the cell in a slot, as CUDA_VISIBLE_DEVICES has them; shared where they do not suffice."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [*map(str, range(gpus))]
    return ",".join(dict.fromkeys(names[(slot * processes + n) % len(names)] for n in range(processes)))


def main(argv: Sequence[str]) -> int:
    parser = Arguments(
        prog="iridis.cells_here", description="Train the cells of a run folder on this machine."
    )
    parser.add_argument("run", type=Path)
    for name in ("at_once", "processes"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="of this machine")
    wanted = parser.parsed(argv)
    cells, content = cells_of(wanted.run), read_json(wanted.run / CELLS) or {}
    stopped = set(train(wanted.run, cells, wanted.at_once, wanted.processes, wanted.gpus))
    problems, done = list(content["left_out"]), content["finished"]
    for cell in cells:
        outcome = read_outcome(place_of(wanted.run, cell) / OUTCOME)
        if outcome is not None and outcome.is_done:
            done += 1
            stopped.discard(cell["label"])  # the stop came when the training had ended
        elif cell["label"] not in stopped:
            reason = "ended without a word, see above" if outcome is None else outcome.reason
            problems.append(f"cell {cell['number']} ({cell['label']}): {reason}")
    print(*(f"error: {line}" for line in problems), sep="\n", end="\n" * bool(problems), file=sys.stderr)
    left = f"; the same command goes on with {len(stopped)}" if stopped else ""
    print(f"=== sweep {content['name']}: {done} of {content['of']} cells are finished{left}", flush=True)
    return 1 if problems else STOPPED if stopped else 0


if __name__ == "__main__":
    sys.exit(guarded("sweep", lambda: main(sys.argv[1:])))
