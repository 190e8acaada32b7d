"""GPU hours that a sweep of text models will take, as docs/experiments.md forecasts them.

    python -m report.forecast iridis/mini-repro/paper.json

Floating-point operations of every cell, at the utilisation that a re-run of the paper reached on 2 x L4 with
models like it (report/experiments.py). That was at width 768: smaller models reach less, and evaluations and
the start of each training come on top.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from config import guarded
from config.places import places
from config.sweep import Sweep, read_sweep
from errors import UserError
from models.variants import VARIANTS
from report.experiments import GPU, utilisation

PROG = "report.forecast"


def hours_of(args: Namespace) -> float:
    """Of a training with these flags, on one GPU."""
    from models.macs import training_flops_per_token
    from models.settings import ModelSettings
    from optim.reporting import PEAK_FLOPS

    tokens = args.iterations * args.batch_size * args.acc_steps * args.sequence_length
    operations = training_flops_per_token(ModelSettings.from_args(args)) * tokens
    kind = "routed" if VARIANTS[args.model].routes else "fixed"
    return operations / (3600 * PEAK_FLOPS[GPU] * utilisation(kind))


def hours_by_label(sweep: Sweep) -> dict[str, float]:
    """Of all seeds of each setting; cells that are refused have none."""
    hours: dict[str, float] = {}
    for cell in sweep.cells:
        args = cell.resolved().args
        if args is not None:
            hours[cell.label] = hours.get(cell.label, 0.0) + hours_of(args)
    return hours


def run(argv: Sequence[str]) -> int:
    """Raises UserError."""
    if len(argv) != 1:
        raise UserError(f"one sweep, please: python -m {PROG} SWEEP.json")
    sweep = read_sweep(Path(argv[0]), places())
    if sweep.recipe != "cotformer":
        raise UserError(f"{sweep.path} is of the recipe {sweep.recipe}; this is for cotformer")
    hours = hours_by_label(sweep)
    for label, each in hours.items():
        print(f"{each:10.2f}  {label}")
    print(f"{sum(hours.values()):10.2f}  {GPU} hours in all, of {len(sweep.cells)} trainings")
    return 0


def main() -> int:
    return guarded(PROG, lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
