"""Which checkpoint files an evaluation reads. An experiment's are its milestones and the final one, or the
steps that are asked for.

    python -m iridis.targets [--steps 40000 60000] [--data_dir DIR] [--quick] [--later] [--routed]
    [--need_data] -- DIR_OR_FILE...

Prints four fields for each file, each ended by a NUL: the number of its checkpoint on the command line, its
step (empty: unknown), its path, and DIR where the data that it was trained on are not at the recorded place
but are below DIR (else empty). A milestone is a `ckpt_N.pt` of a step that the training was asked to keep
(--keep_steps). --quick: files are taken for intact. --later: steps may be missing, as their training goes on.
Exit code 2: a line for each step that is missing, with --routed for each model that has no routers, and with
--need_data for each whose data are neither at the recorded place nor below DIR.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import Arguments, guarded
from data.bins import is_prepared
from data.setup import is_built_in
from data.sources import Wanted
from errors import UserError
from models.variants import VARIANTS
from optim.done import wanted_data
from optim.names import FINAL, numbered, step_of
from optim.peek import peek, step_in
from optim.reader import Record


def steps_there(folder: Path) -> dict[int, Path]:
    """The checkpoint of each step in an experiment's folder, in their order; the final one by the step
    that it holds.
    """
    found = {step_of(path) or 0: path for path in numbered(folder)}
    final = folder / FINAL
    step = step_in(final) if final.is_file() else None
    if step is not None:
        found.setdefault(step, final)
    return dict(sorted(found.items()))


def recorded(path: Path) -> dict[str, Any]:
    """Flags of the training that wrote a checkpoint, as far as it or the summary beside it records them."""
    args = (peek(path) or {}).get("args")
    return args if isinstance(args, dict) else Record(path.parent, problems=[]).flags or {}


def missing(folder: Path, steps: Sequence[int]) -> list[str]:
    """A line for each of these steps of which an experiment's folder has no checkpoint."""
    there = steps_there(folder)
    known = f"there are {', '.join(map(str, there))}" if there else "there is no checkpoint"
    return [
        f"--steps {step}: {folder} has no checkpoint of that step; {known}"
        for step in steps
        if step not in there
    ]


def newest(folder: Path, quick: bool) -> Path | None:
    """The newest checkpoint; if not quick, the newest intact one, with a line on stderr about each newer
    one that is not.
    """
    if quick:
        return next(reversed(steps_there(folder).values()), None)
    from optim.checkpoint import newest_valid

    path, notes = newest_valid(folder)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    return path


def files_of(checkpoint: Path, steps: Sequence[int], quick: bool) -> list[Path]:
    """A file itself; for an experiment's folder the files of these steps, else the milestones and the newest.

    A folder without checkpoints is returned itself: eval.py reports what is wrong with it.
    """
    if not checkpoint.is_dir():
        return [checkpoint]
    if steps:
        there = steps_there(checkpoint)
        return [there.get(step, checkpoint / f"ckpt_{step}.pt") for step in dict.fromkeys(steps)]
    last = newest(checkpoint, quick)
    if last is None:
        return [checkpoint]
    kept, final = recorded(last).get("keep_steps"), step_in(last)
    milestones = {
        step: path
        for step, path in steps_there(checkpoint).items()
        if isinstance(kept, list) and step in kept
    }
    return [path for step, path in milestones.items() if step != final] + [last]


def data_of(path: Path) -> Any:
    """What a checkpoint was trained on, as optim.done.wanted_data has it; None where its flags do not say."""
    args = recorded(path)
    if isinstance(args.get("dataset"), str) and isinstance(args.get("data_dir"), str | None):
        return wanted_data(Namespace(**{"data_dir": None, **args}))
    return None


def is_prepared_of(data: Any) -> bool:
    """Whether all data are there."""
    return bool(data.is_prepared) if isinstance(data, Wanted) else not data.lacking()


def other_place(path: Path, data_dir: str) -> str:
    """data_dir if the data that a checkpoint was trained on are there and not at the recorded place, else
    empty.
    """
    data = data_of(path)
    if data is None or is_prepared_of(data):
        return ""
    return data_dir if is_prepared_of(replace(data, data_dir=data_dir)) else ""


def unfit(path: Path, routed: bool, data_dir: str | None) -> list[str]:
    """A line for each reason why a checkpoint cannot be evaluated, as far as its flags are known.
    data_dir: where its data may be too.
    """
    model, data = recorded(path).get("model"), data_of(path)
    lines = []
    if routed and model in VARIANTS and not VARIANTS[model].routes:
        lines.append(f"{path}: {model} routes no tokens; this is for adaptive models (adm, but_mod)")
    if not data_dir or data is None:
        return lines
    there = replace(data, data_dir=data_dir)
    if not data.lacking() or not there.lacking():
        return lines
    if not isinstance(data, Wanted):
        return [*lines, *(f"{path}: {line}" for line in data.lacking())]
    for name in data.names:
        places = data.folder(name), there.folder(name)
        if not is_built_in(name) and not any(map(is_prepared, places)):
            lines.append(
                f"{path}: its dataset {name} is neither in {places[0]}, where it was trained, nor in"
                f" {places[1]} (DATA_DIR)"
            )
    return lines


def run(argv: Sequence[str]) -> int:
    parser = Arguments(prog="targets", description="Which checkpoint files an evaluation reads.")
    parser.add_argument(
        "--steps",
        type=int,
        nargs="*",
        default=[],
        help="of each experiment, instead of its milestones and the final one",
    )
    parser.add_argument("--data_dir", help="root of the datasets where the recorded one is not there")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do not read the newest checkpoint through to see whether it is intact",
    )
    parser.add_argument(
        "--later", action="store_true", help="name checkpoints of steps that are not there yet"
    )
    parser.add_argument("--routed", action="store_true", help="refuse models without routers")
    parser.add_argument(
        "--need_data", action="store_true", help="refuse checkpoints whose data are at neither place"
    )
    parser.add_argument("checkpoints", nargs="+", type=Path)
    given = parser.parsed(argv)
    problems = []
    for checkpoint in given.checkpoints:
        if checkpoint.is_dir():
            problems += [] if given.later else missing(checkpoint, given.steps)
        elif given.steps and checkpoint.is_file():
            problems.append(f"--steps: {checkpoint} is one checkpoint; give the folder of its experiment")
    if not problems:
        files = dict.fromkeys(
            path for checkpoint in given.checkpoints for path in files_of(checkpoint, given.steps, quick=True)
        )
        problems = [
            line
            for path in files
            for line in unfit(path, given.routed, given.data_dir if given.need_data else None)
        ]
    if problems:
        raise UserError("\n".join(problems))
    fields: list[str] = []
    for number, checkpoint in enumerate(given.checkpoints):
        for path in files_of(checkpoint, given.steps, given.quick):
            place = other_place(path, given.data_dir) if given.data_dir else ""
            if place:
                print(
                    f"note: the data of {path} are not where it was trained; reading them below DATA_DIR,"
                    f" {place}",
                    file=sys.stderr,
                )
            step = step_in(path) if path.is_file() else None
            fields += [str(number), "" if step is None else str(step), str(path), place]
    sys.stdout.write("".join(f"{field}\0" for field in fields))
    return 0


if __name__ == "__main__":
    sys.exit(guarded("iridis.targets", lambda: run(sys.argv[1:])))
