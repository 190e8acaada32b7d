"""Evaluate the finished cells of a sweep, each into its experiment's folder; for iridis/mini-repro/job.sh.

    python -m iridis.evaluate_cells SWEEP.json [--at_once N] [--sample_tokens N] [--dry-run]

All: perplexity on the whole validation split (eval.py). Adaptive models also, on --sample_tokens of it: all
compute budgets (get_ppl_per_mac.py), router scores (get_router_weights.py), and both kinds of routing
(get_routing.py), which run alone, at the end, because of their seconds.

What is there of the same checkpoint is left as it is, so that the same command goes on where this one
ended; evaluated.json says of which checkpoint the results of a folder are. Exit code 1: a line for each
cell that is not finished, or could not be evaluated; 83: asked to end.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config import Arguments, guarded
from config.places import places
from config.sweep import Cell, Sweep, read_sweep
from errors import STOPPED, UserError
from files import read_json, write_json
from iridis.stages import DONE, INTERRUPTED, NEW, Running, Stages, start, thread_share
from models.variants import VARIANTS
from optim.cascade import CASCADES
from optim.names import EVALUATION, FINAL, ROUTING, SWEEP, window_losses_of
from optim.reader import Record

PROG = "iridis.evaluate_cells"
STAMP = "evaluated.json"
SAMPLE_TOKENS = 1 << 20
ROOT = Path(__file__).parent.parent
OF_FINAL = EVALUATION.format(Path(FINAL).stem)
SCORES = [f"router_weights_{cascade}" for cascade in CASCADES]


@dataclass(frozen=True)
class Work:
    """A program that writes results. results: its files; the last one is there when it has done all.
    needs: a key of that file that has a value then.
    """

    program: str
    results: tuple[str, ...]
    options: tuple[str, ...] = ()
    is_of_routers: bool = True
    is_timed: bool = False
    needs: str | None = None

    def is_done(self, folder: Path) -> bool:
        last = folder / self.results[-1]
        if self.needs is None or not last.exists():
            return last.exists()
        return (read_json(last) or {}).get(self.needs) is not None


WORKS = {
    "perplexity": Work("eval.py", (window_losses_of(OF_FINAL), OF_FINAL), is_of_routers=False),
    "budgets": Work("get_ppl_per_mac.py", (SWEEP.replace(".json", ".npz"), SWEEP), needs="timing"),
    "router scores": Work(
        "get_router_weights.py",
        tuple(f"{stem}{ending}" for ending in (".npz", "_meta.json") for stem in SCORES),
        ("--split", "train", "--cascade", *CASCADES),
    ),
    "routing": Work("get_routing.py", (ROUTING,), is_timed=True),
}


def is_finished(cell: Cell) -> bool:
    """Whether a cell has a final checkpoint of all its steps."""
    folder = cell.resolved().folder
    return folder is not None and (folder / FINAL).is_file() and Record(folder, problems=[]).finished()


def works_of(cell: Cell) -> dict[str, Work]:
    """What is to be measured of a cell."""
    args = cell.resolved().args
    assert args is not None, "a cell that is refused is not finished"
    routes = VARIANTS[args.model].routes and args.n_repeat > 1
    return {name: work for name, work in WORKS.items() if routes or not work.is_of_routers}


def prepare(folder: Path, sample_tokens: int) -> None:
    """Remove results of another checkpoint than the one that is there, and write down which that is.

    Results whose checkpoint nobody has written down are taken for another's. A line names what is removed.
    """
    found = (folder / FINAL).stat()
    stamp = {"bytes": found.st_size, "modified": found.st_mtime_ns, "sample_tokens": sample_tokens}
    try:
        known = read_json(folder / STAMP)
    except UserError:  # damaged
        known = None
    if known == stamp:
        return
    names = [name for work in WORKS.values() for name in work.results]
    old = [name for name in names if (folder / name).exists()]
    if old:
        print(f"removed, as of another checkpoint or sample: {', '.join(old)} in {folder}", flush=True)
    for name in old:
        (folder / name).unlink(missing_ok=True)
    write_json(folder / STAMP, stamp)


def command(folder: Path, work: Work, sample_tokens: int) -> list[str]:
    words = [sys.executable, work.program, "--checkpoint", str(folder), "--output_dir", str(folder)]
    if work.is_of_routers:
        words += ["--eval_sample_size", str(sample_tokens)]
    return [*words, *work.options]


def run_all(commands: dict[str, list[str]], at_once: int) -> dict[str, str]:
    """How each program ended, as Stages has it."""
    states = dict.fromkeys(commands, NEW)

    def launch(name: str) -> Running:
        env = {"OMP_NUM_THREADS": str(thread_share(at_once)), **os.environ}
        return start(name, commands[name], env)

    Stages(states, dict.fromkeys(commands, ()), launch, at_once).run()
    return states


def evaluate(cells: Sequence[Cell], at_once: int, sample_tokens: int) -> list[str]:
    """Evaluate finished cells. Returns a line for each program that failed.

    Raises KeyboardInterrupt where this was asked to end.
    """
    commands: dict[bool, dict[str, list[str]]] = {False: {}, True: {}}
    for cell in cells:
        folder = cell.resolved().folder
        assert folder is not None, "it is finished"
        prepare(folder, sample_tokens)
        for name, work in works_of(cell).items():
            if not work.is_done(folder):
                commands[work.is_timed][f"{cell.title}, {name}"] = command(folder, work, sample_tokens)
    failed = []
    for is_timed, those in commands.items():
        states = run_all(those, 1 if is_timed else at_once)
        if not {INTERRUPTED, NEW}.isdisjoint(states.values()):
            raise KeyboardInterrupt
        failed += [f"{name}: failed, see above" for name, state in states.items() if state != DONE]
    return failed


def describe(cells: Sequence[Cell], sample_tokens: int) -> None:
    """Print what would be run for all cells."""
    for cell in cells:
        folder = cell.resolved().folder
        if folder is not None:
            for work in works_of(cell).values():
                print(shlex.join(["python", *command(folder, work, sample_tokens)[1:]]))


def dataset_of(sweep: Sweep) -> str:
    """Raises UserError where cells have different ones: their losses say nothing about each other."""
    resolved = [cell.resolved().args for cell in sweep.cells]
    names = list(dict.fromkeys(str(args.dataset) for args in resolved if args is not None))
    if len(names) > 1:
        raise UserError(f"{sweep.path}: the cells have several datasets: {', '.join(names)}")
    return names[0]


def run(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = Arguments(prog=PROG, description="Evaluate the finished cells of a sweep.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--at_once", type=int, default=1, help="programs that run at a time [1]")
    parser.add_argument(
        "--sample_tokens",
        type=int,
        default=SAMPLE_TOKENS,
        help=f"validation tokens that are read for each number of adaptive models [{SAMPLE_TOKENS}]",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the programs of all cells")
    parser.add_argument("--dataset", action="store_true", help="print the dataset of all cells, and end")
    wanted = parser.parsed(argv)
    for name in ("at_once", "sample_tokens"):
        if getattr(wanted, name) < 1:
            raise UserError(f"--{name} must be at least 1")
    sweep = read_sweep(wanted.sweep, places())
    if wanted.dataset:
        print(dataset_of(sweep))
        return 0
    if wanted.dry_run:
        describe(sweep.cells, wanted.sample_tokens)
        return 0
    finished = [cell for cell in sweep.cells if is_finished(cell)]
    try:
        problems = evaluate(finished, wanted.at_once, wanted.sample_tokens)
    except KeyboardInterrupt:
        return STOPPED
    left = [cell.title for cell in sweep.cells if cell not in finished]
    problems = [*(f"{title}: not finished, and not evaluated" for title in left), *problems]
    print(*(f"error: {line}" for line in problems), sep="\n", end="\n" * bool(problems), file=sys.stderr)
    print(f"=== sweep {sweep.name}: {len(finished)} of {len(sweep.cells)} cells are finished")
    return int(bool(problems))


def main(argv: Sequence[str]) -> int:
    return guarded(PROG, lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
