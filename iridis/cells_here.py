"""Cells of a sweep on this machine, several at once, each line behind its cell's name; for iridis/cells.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from config.sweep import Cell
from errors import STOPPED
from iridis.stages import INTERRUPTED, NEW, Running, Stages, start, thread_share
from optim.outcome import OUTCOME, read_outcome


def train_here(run: Path, cells: Sequence[Cell], at_once: int, processes: int, gpus: int) -> int:
    """Train cells, at most `at_once` at a time; the same command goes on where this one was asked to end.

    run: their run folder. processes: of each. gpus: of this machine, which are dealt to those that run. Returns
    the exit code: 0, 1 where a cell has failed, STOPPED.
    """
    by_name = {cell.title: cell for cell in cells}
    places = {name: run / f"cell_{cell.number}" for name, cell in by_name.items()}
    slots: dict[str, int] = {}
    torchrun = ("-m", "distributed.torchrun", "--standalone", "--nproc_per_node", str(processes))

    def launch(name: str) -> Running:
        taken = {slots[stage.name] for stage in stages.running}
        slots[name] = next(slot for slot in range(at_once) if slot not in taken)
        files = ("--stop_file", str(places[name] / "stop"), "--outcome_file", str(places[name] / OUTCOME))
        env = {"OMP_NUM_THREADS": str(thread_share(at_once * processes)), **os.environ}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = devices(slots[name], processes, gpus)
        launcher = torchrun if processes > 1 else ()
        command = (sys.executable, *launcher, "main.py", *by_name[name].words, *files)
        return start(name, command, env)

    stages = Stages(dict.fromkeys(by_name, NEW), dict.fromkeys(by_name, ()), launch, at_once)
    stages.run()
    outcomes = {name: read_outcome(place / OUTCOME) for name, place in places.items()}
    done = [name for name, outcome in outcomes.items() if outcome is not None and outcome.is_done]
    stopped = [name for name, state in stages.states.items() if state in (INTERRUPTED, NEW)]
    failed = [name for name in by_name if name not in done and name not in stopped]
    for name in failed:
        outcome = outcomes[name]
        why = "ended without a word, see above" if outcome is None else outcome.reason
        print(f"error: {name}: {why}", file=sys.stderr)
    print(f"=== {len(done)} of {len(by_name)} cells finished here, {len(failed)} failed", flush=True)
    if stopped:
        print(f"stopped: the same command goes on with {len(stopped)} cells", file=sys.stderr)
    return 1 if failed else STOPPED if stopped else 0


def devices(slot: int, processes: int, gpus: int) -> str:
    """GPUs of the cell in a slot, as CUDA_VISIBLE_DEVICES has them; they are shared where they do not suffice."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [*map(str, range(gpus))]
    return ",".join(dict.fromkeys(names[(slot * processes + n) % len(names)] for n in range(processes)))
