"""Before a job is queued: can it run there, is there room for its checkpoints, how long will it take?

    python -m iridis.preflight [--partition P --time T --nodes N --gpus N --processes N] [--no-data] [--where]
        [--formerly FLAGS [--experiment E]] -- FLAGS OF main.py

stdout has lines NAME=VALUE for the job library:

    EXPERIMENT              its folder
    STATE                   finished or unfinished
    LEAD                    how many seconds before its time limit the job should be asked to stop
    HOLDER                  who trains the experiment now, if anyone
    DEVICE, MODEL           the device; the model's short name, or the recipe's
    SAVED_STEP, ITERATIONS  of the newest checkpoint; planned
    FORMER                  1 where the experiment was begun with the flags of --formerly, in the place of the
                            first of FLAGS, and keeps them

Messages for people go to stderr. With --where nothing is checked. With --allowed it has ALLOWED and
ALLOWED_SECONDS, the partition's limit, where that is less than --time, else nothing. Exit code 2: one line
for each problem.
"""

from __future__ import annotations

import itertools
import math
import os
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import config
from config.checks import needs_reference
from config.curriculum import LENGTH
from config.recipe import flags_of
from data.sources import Wanted, lacking_sources
from errors import UserError
from iridis.chain import Cause
from models.variants import ALIASES
from optim import initial
from optim.done import is_finished, wanted_data
from optim.forecast import forecast as of_work
from optim.lock import holder
from optim.names import FINAL, STOP, numbered
from optim.peek import newest_first, peek
from optim.reader import Record, printed, read_segments
from optim.resumable import check_resumable

SLURM_SECONDS = 20  # patience with SLURM's commands
LEAD_SECONDS = 300  # before the time limit, where steps and saves have not been timed yet
LEAD_MARGIN = 60
OPTIMIZER_STATES = {
    "adamw": 2,
    "sgd": 1,
    "adafactor": 0.1,
    "muon": 2,
    "lion": 1,
}  # numbers kept for each weight


def say(line: str) -> None:
    print(line, file=sys.stderr)


def seconds_of(text: str) -> int | None:
    """SLURM's D-HH:MM:SS, HH:MM:SS, MM:SS, MM or D-HH in seconds; None for UNLIMITED.

    Raises UserError for anything else.
    """
    if text.lower() in ("infinite", "unlimited", "none", "n/a"):
        return None
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if (
        not all(part.isascii() and part.isdigit() for part in [*parts, *([days] if "-" in text else [])])
        or len(parts) > 3
    ):
        raise UserError(f"{text!r} is no time limit; write D-HH:MM:SS, HH:MM:SS or minutes")
    numbers = [int(part) for part in parts]
    if days:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = [(0, numbers[0], 0), (0, *numbers), tuple(numbers)][len(numbers) - 1]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def slurm(*command: str) -> list[str]:
    """Lines that a SLURM command prints. Raises UserError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLURM_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not answer: {error}") from None
    if done.returncode:
        raise UserError(
            f"{command[0]}: {(done.stderr or done.stdout).strip().splitlines()[-1:] or done.returncode}"
        )
    return done.stdout.splitlines()


def partition_problems(partition: str, limit: str, nodes: int, gpus: int) -> list[str]:
    """Why a partition cannot take the job."""
    partitions = [line.split("|") for line in slurm("sinfo", "-h", "-o", "%R|%l|%D|%G")]
    known, names = sorted({name for name, *_ in partitions}), partition.split(",")
    wrong = [name for name in names if name not in known]
    if wrong:
        return [
            f"there is no partition {name!r} here; set PARTITION to one of: {', '.join(known)}"
            for name in wrong
        ]
    problems, rows = [], [row for name, *row in partitions if name in names]
    wanted, allowed = seconds_of(limit), seconds_of(rows[0][0])
    if allowed is not None and (wanted is None or wanted > allowed):
        problems.append(f"TIME_LIMIT {limit} is more than partition {partition} allows ({rows[0][0]})")
    if sum(int(row[1]) for row in rows) < nodes:
        problems.append(f"N_NODES {nodes} is more than partition {partition} has")
    if gpus and max(gpus_in(row[2]) for row in rows) < gpus:
        problems.append(
            f"N_GPUS {gpus} is more than a node of partition {partition} has"
            f" ({', '.join(row[2] for row in rows)})"
        )
    return problems


def allowed_limit(partition: str, limit: str) -> tuple[str, int] | None:
    """The longest time limit of a partition (the most generous of several), in words and seconds, if `limit`
    is more.
    """
    rows = [(seconds_of(text), text) for text in slurm("sinfo", "-h", "-p", partition, "-o", "%l")]
    wanted, limits = seconds_of(limit), [(seconds, text) for seconds, text in rows if seconds is not None]
    if not rows or len(limits) < len(rows):  # one of them has no limit
        return None
    allowed, text = max(limits)
    return (text, allowed) if wanted is None or wanted > allowed else None


def gpus_in(gres: str) -> int:
    """GPUs in a line like `gpu:l4:2(S:0-1),shard:8`."""
    fields = [part.split("(")[0].split(":") for part in gres.split(",")]
    return sum(int(field[-1]) for field in fields if field[0] == "gpu" and field[-1].isdigit())


def checkpoint_bytes(args: Namespace, folder: Path) -> int:
    """Size of the newest checkpoint, or the size that the model's weights and optimiser states will have."""
    saved = [path for path in (folder / FINAL, *numbered(folder)) if path.is_file()]
    if saved:
        return saved[0].stat().st_size
    import torch

    from models import make_model_from_args
    from models.adapters import trained_parameters

    with torch.device("meta"):
        network = make_model_from_args(args)
    weights = sum(p.numel() for p in network.parameters())
    return int(4 * (weights + OPTIMIZER_STATES[args.opt] * trained_parameters(network)))


def existing_parent(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def free_bytes(folder: Path) -> int:
    """Space for new files: free on the disk, or left of a Lustre quota, whichever is less."""
    place = existing_parent(folder)
    free = shutil.disk_usage(place).free
    if shutil.which("lfs"):
        try:
            words = slurm("lfs", "quota", "-q", "-u", str(os.getuid()), str(place))[-1].split()
            used, _, limit = (
                int(word.rstrip("*")) if word.rstrip("*").isdigit() else 0 for word in words[-8:-5]
            )
        except (UserError, IndexError, ValueError):  # no answer, or none that has a quota's columns
            return free
        if limit:
            free = min(free, 1024 * max(limit - used, 0))
    return free


def checkpoints_at_once(args: Namespace) -> int:
    """The most that lie in the folder at a time."""
    every = args.save_checkpoint_freq or args.iterations
    kept = min(args.keep_checkpoints or args.iterations, args.iterations // every)
    apart = {
        step
        for step in args.keep_steps or ()
        if step < args.iterations and (args.keep_checkpoints or step % every)
    }
    return kept + len(apart) + 3


def space_problems(args: Namespace, folder: Path) -> list[str]:
    """Whether there is space for the coming checkpoints: those that are kept, the one resumed from, the final
    one, and one being written.
    """
    size, count = checkpoint_bytes(args, folder), checkpoints_at_once(args)
    there = sum(path.stat().st_size for path in folder.glob("*.pt")) if folder.is_dir() else 0
    needed, free = count * size - there, free_bytes(folder)
    say(
        f"checkpoints: {size / 2**20:,.0f} MiB each, up to {count} at a time; {free / 2**30:,.1f} GiB free in"
        f" {existing_parent(folder)}"
    )
    if not os.access(existing_parent(folder), os.W_OK):
        return [f"{existing_parent(folder)} cannot be written to; set RESULTS_DIR"]
    if needed > free:
        return [
            f"{folder} needs {needed / 2**30:.1f} GiB more for checkpoints, but {free / 2**30:.1f} GiB are"
            " free; make room, or lower --keep_checkpoints, or set RESULTS_DIR"
        ]
    return []


def forecast(record: Record, iterations: int, limit: str | None) -> str | None:
    """Steps an hour, jobs and days to the end, from what earlier jobs of the experiment did."""
    per_hour = record.steps_per_hour()
    if not per_hour:
        return None
    left = max(iterations - record.saved_step, 0)
    hours = left / per_hour
    job = seconds_of(limit) if limit else None
    jobs = f", {max(1, math.ceil(hours * 3600 / job))} more job(s) of {limit}" if job and left else ""
    return (
        f"forecast: {per_hour:,.0f} steps/h, {left:,} of {iterations:,} steps left: {hours:.1f} h ="
        f" {hours / 24:.1f} days of running{jobs}"
    )


def lead_seconds(record: Record, limit: str | None) -> int:
    """How long before the limit to stop: the slowest step and save seen so far and a minute; never more than
    a quarter of the limit.

    Twice as long after each job in a row for which that was too short.
    """
    lead = sum(record.slowest) + LEAD_MARGIN if record.slowest else LEAD_SECONDS
    for _ in itertools.takewhile(lambda row: row.get("reason") == Cause.OUTLASTED, reversed(record.segments)):
        lead *= 2
    whole = seconds_of(limit) if limit else None
    return int(min(lead, whole / 4) if whole else lead)


def is_done(record: Record, args: Namespace, where: bool, problems: list[str]) -> bool:
    """Whether the experiment is finished as it is asked for. Reasons why it cannot be are added to
    `problems`; with `where` main.py reports them.

    So is damage, which may be repaired before the job begins.
    """
    try:
        return record.finished() and is_finished(record.folder, args)
    except UserError as error:
        if not where:
            problems += str(error).splitlines()
        return False


def newest_readable(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose numbers can be read.

    main.py, which reads all of it, checks whether it is intact.
    """
    from optim.checkpoint import newest_valid

    readable = (path for path in newest_first(folder) if peek(path) is not None)
    path = next(readable, None)
    return newest_valid(folder) if path is None else (path, [])


def resume_problems(args: Namespace, folder: Path, data: Wanted | None) -> list[str]:
    """What main.py would refuse when it opens an experiment that is not finished. data: None before they are
    prepared.
    """
    from optim.setup import starting_point

    try:
        Record(folder).finished()  # a damaged summary.json
        path = starting_point(folder, args.use_pretrained, newest_readable)
        state = None if path is None else peek(path)
        if path is not None and state is not None:
            check_resumable(path, state, args, None if data is None else data.identity())
    except UserError as error:
        return str(error).splitlines()
    return []


def recorded_args(folder: Path) -> Mapping[str, Any]:
    """Flags of the training in a folder, as its newest checkpoint or summary has them; empty where there
    is neither.
    """
    return Record(folder, problems=[]).flags or {}


def changed_flags(now: Namespace, then: Namespace) -> list[str]:
    return [name for name, value in vars(then).items() if value != getattr(now, name)]


def began_as(args: Namespace, former: Namespace, experiment: Path | None) -> Namespace:
    """`former` if the experiment was begun with those flags, else `args`.

    experiment: the folder that a job was submitted for, whatever has been begun beside it since.
    """
    folder, before = config.experiment_folder(args), config.experiment_folder(former)
    if folder == before:
        recorded, flags = recorded_args(folder), flags_of(vars(args))
        changed = changed_flags(args, former) if recorded else []
        # a flag that came later has its default
        begun = [recorded.get(name, flags[name].default) == getattr(former, name) for name in changed]
        is_former = bool(begun) and all(begun)
    elif experiment in (folder.resolve(), before.resolve()):
        is_former = experiment == before.resolve()
    else:
        is_former = before.is_dir() and not folder.exists()
    return former if is_former else args


def short_name(args: Namespace) -> str:
    """Of the recipe, or in the default one of the model, with its size if it repeats layers: distinguishes
    jobs in the queue, whose names have the experiment's, too.
    """
    if "recipe" in args:
        return str(args.recipe)
    name = min((alias for alias, full in ALIASES.items() if full == args.model), key=len, default=args.model)
    return name + (f"{args.n_layer}x{args.n_repeat}" if args.n_repeat > 1 else str(args.n_layer))


def options(argv: Sequence[str]) -> tuple[Namespace, list[str] | None]:
    words = list(argv)
    flags = None
    if "--" in words:
        separator = words.index("--")
        words, flags = words[:separator], words[separator + 1 :]
    parser = config.Arguments(prog="preflight", description="Check a job before it is queued.")
    parser.add_argument("--partition")
    parser.add_argument("--time")
    for name in ("nodes", "gpus", "processes"):
        parser.add_argument(f"--{name}", type=int, default=0 if name == "gpus" else 1)
    parser.add_argument(
        "--no-data",
        action="store_true",
        help="a job before this one prepares the data, or trains what it begins with",
    )
    parser.add_argument(
        "--allowed",
        action="store_true",
        help="only print what the partition allows, where that is less than --time",
    )
    parser.add_argument("--where", action="store_true", help="only print where the experiment is")
    parser.add_argument(
        "--formerly",
        type=shlex.split,
        default=[],
        help="former values of the first of FLAGS",
    )
    parser.add_argument(
        "--experiment", type=Path, help="folder of the experiment that the job was submitted for"
    )
    return parser.parsed(words), flags


def find_weights(args: Namespace, record: Record) -> None:
    """The checkpoints that the training needs. Raises UserError for one that is not there."""
    is_reference = needs_reference(args) and args.reference is None
    if args.init_from is not None and (is_reference or not record.saved_step):
        initial.find(args.init_from, results=args.results_base_folder)
    for name in initial.FROZEN:
        given = getattr(args, name, None)
        if given is not None:
            initial.find(given, f"--{name}", args.results_base_folder)


def training_problems(wanted: Namespace, args: Namespace, record: Record, is_refused: bool) -> list[str]:
    """Why main.py could not train; prints the forecast. is_refused: it would refuse to go on with the
    experiment. Raises UserError.
    """
    problems, folder = [], record.folder
    try:
        config.check_world_size(args, wanted.processes)
    except UserError as error:
        problems += str(error).splitlines()
    data = wanted_data(args)
    if not is_refused and (folder.is_dir() or args.use_pretrained != "auto"):
        problems += resume_problems(args, folder, None if wanted.no_data else data)
    problems += [] if wanted.no_data else data.lacking()
    if not wanted.no_data:
        data.end_of_text()  # which packing needs
        find_weights(args, record)
    if (folder / STOP).exists():
        problems.append(f"{folder / STOP} keeps this experiment stopped; remove it first")
    problems += space_problems(args, folder)
    read_segments(folder)  # a damaged segments.jsonl would end the job in its first minute
    is_even = getattr(args, "curriculum", None) != LENGTH  # else the first steps say nothing about the last
    say((is_even and forecast(record, args.iterations, wanted.time)) or of_work(record, args))
    return problems


def settings_of(wanted: Namespace, flags: Sequence[str]) -> tuple[Namespace, bool]:
    """All flags of the training, and whether it was begun with those of --formerly. Raises UserError."""
    only_prints = {"-h", "--help", "--print_config"} & {word.partition("=")[0] for word in flags}
    if only_prints:
        word = only_prints.pop()
        raise UserError(f"{word} is nothing to queue: python main.py {word}")
    asked = config.parse_args(
        flags, problems_of_sources=lambda args: [] if wanted.no_data else lacking_sources(args)
    )
    former = config.parse_args([*wanted.formerly, *flags[len(wanted.formerly) :]])
    args = began_as(asked, former, wanted.experiment)
    if args is asked:
        return args, False
    changed = [name for name in changed_flags(asked, args) if name != "data_seed"]  # that of --seed
    begun = " ".join(f"--{name} {getattr(args, name)}" for name in changed)
    say(
        f"note: going on with {begun}, with which {config.experiment_folder(args).name} was begun; they were"
        " the defaults then"
    )
    return args, True


def main(argv: Sequence[str]) -> int:
    wanted, flags = options(argv)
    if wanted.allowed:
        allowed = allowed_limit(wanted.partition, wanted.time)
        print(printed({"ALLOWED": allowed[0], "ALLOWED_SECONDS": allowed[1]} if allowed else {}))
        return 0
    problems: list[str] = []
    if wanted.partition is not None:
        problems += partition_problems(wanted.partition, wanted.time, wanted.nodes, wanted.gpus)
    answer: dict[str, object] = {}
    if flags is not None:
        args, is_former = settings_of(wanted, flags)
        folder = config.experiment_folder(args)
        record = Record(folder, problems=[])  # main.py reports damage when it meets it
        refused: list[str] = []
        done = is_done(record, args, wanted.where, refused)
        problems += refused
        answer = {
            "EXPERIMENT": folder.resolve(),
            "STATE": "finished" if done else "unfinished",
            "LEAD": lead_seconds(record, wanted.time),
            "HOLDER": holder(folder / "lock"),
            "DEVICE": args.device,
            "MODEL": short_name(args),
            "SAVED_STEP": record.saved_step,
            "ITERATIONS": args.iterations,
            "FORMER": int(is_former),
        }
        if not wanted.where and not done:
            problems += training_problems(wanted, args, record, bool(refused))
        problems = [*map(config.as_written(flags), problems)]
    if problems:
        raise UserError("\n".join(problems))
    print(printed(answer))
    return 0


if __name__ == "__main__":
    sys.exit(config.guarded("job", lambda: main(sys.argv[1:])))
