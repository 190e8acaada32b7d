"""What a training reads first and what later (--curriculum): lengths that grow, or sources that get harder.

Needs neither numpy nor torch, so that checks of a command line can have it.
"""

from __future__ import annotations

from argparse import Namespace

from config import packing
from config.mixture import RANDOM, is_mixture, parse_mixture
from config.values import Problem
from errors import UserError

NONE, LENGTH, DIFFICULTY = "none", "length", "difficulty"
CURRICULA = (NONE, LENGTH, DIFFICULTY)
SETTINGS = {LENGTH: ("curriculum_stages", "curriculum_min_length")}
SETTINGS[DIFFICULTY] = ("curriculum_hard", "curriculum_warmup")


def stage_lengths(stages: int, shortest: int, longest: int) -> list[int]:
    """Tokens of a sequence in each stage, evenly spaced."""
    return [int(shortest + stage / max(stages - 1, 1) * (longest - shortest)) for stage in range(stages)]


def is_easy(name: str, hard: list[str] | None) -> bool:
    """Whether a source of a mixture is not among those that --curriculum_hard names."""
    return name not in (hard or ())


def unused_by_curriculum(args: Namespace) -> dict[str, str]:
    """Flags of other curricula, each with words that follow "no effect"."""
    others = [name for kind, names in SETTINGS.items() if kind != args.curriculum for name in names]
    return dict.fromkeys(others, f": --curriculum is {args.curriculum}")


def curriculum_problems(args: Namespace) -> list[Problem]:
    if args.curriculum == NONE:
        return []
    problems = []
    if args.extend is not None:
        line = (
            "--extend: a curriculum is spread over the steps that were planned, so a longer training would"
            " have begun with other samples; begin one anew under another --exp_name"
        )
        problems.append(Problem(line, "curriculum", "extend"))
    if is_mixture(args.dataset) and args.sampling == RANDOM:
        line = f"--curriculum {args.curriculum} reads sources in an order: it needs --sampling epochs"
        problems.append(Problem(line, "curriculum", "sampling"))
    of_kind = _length_problems if args.curriculum == LENGTH else _difficulty_problems
    return problems + of_kind(args)


def _length_problems(args: Namespace) -> list[Problem]:
    problems = []
    if args.packing != packing.NONE:
        line = f"--packing {args.packing} fills rows of one length: --curriculum length has several"
        problems.append(Problem(line, "curriculum", "packing"))
    if args.curriculum_min_length > args.sequence_length:
        line = (
            f"--curriculum_min_length {args.curriculum_min_length} is more than --sequence_length"
            f" {args.sequence_length}"
        )
        problems.append(Problem(line, "curriculum_min_length", "sequence_length"))
    elif args.curriculum_stages == 1 and args.curriculum_min_length < args.sequence_length:
        line = "--curriculum_stages 1 would be the shortest one: give 2 or more to reach --sequence_length"
        problems.append(Problem(line, "curriculum_stages", "curriculum_min_length"))
    if args.iterations is not None and args.curriculum_stages > args.iterations:
        line = (
            f"--curriculum_stages {args.curriculum_stages}: there are only {args.iterations} steps"
            " (--iterations)"
        )
        problems.append(Problem(line, "curriculum_stages", "iterations"))
    return problems


def _difficulty_problems(args: Namespace) -> list[Problem]:
    if not is_mixture(args.dataset):
        line = (
            "--curriculum difficulty needs a mixture of easy and hard sources (--dataset EASY=0.5,HARD=0.5)"
        )
        return [Problem(line, "curriculum", "dataset")]
    if not args.curriculum_hard:
        line = "--curriculum difficulty: say which sources are hard (--curriculum_hard NAME ...)"
        return [Problem(line, "curriculum", "curriculum_hard")]
    try:
        weights = parse_mixture(args.dataset)
    except UserError:  # a problem of --dataset
        return []
    problems = []
    for name in args.curriculum_hard:
        if name not in weights:
            line = f"--curriculum_hard {name}: the mixture has no such source, but {', '.join(weights)}"
            problems.append(Problem(line, "curriculum_hard", "dataset"))
    hard = args.curriculum_hard
    for side, is_side in (("easy", True), ("hard", False)):
        of_side = [weight for name, weight in weights.items() if is_easy(name, hard) == is_side]
        if not problems and not sum(of_side):
            line = f"--curriculum difficulty: no source of the mixture is {side} and has a weight"
            problems.append(Problem(line, "curriculum_hard", "dataset"))
    return problems
