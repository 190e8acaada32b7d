"""Training from Python: any network, source of batches and objective on the loop that main.py uses.

    rows = fit(NextToken(network), source, steps=200, lr=3e-3)
    rows = fit(objective, source, steps=20_000, folder="runs/mine", save_checkpoint_freq=1000)

docs/library.md shows a token array, a loss, a network and a callback of one's own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

import config
import distributed
from config.flags import FLAGS
from data.batch import BatchSource
from distributed.world import World
from errors import UserError
from optim.done import is_finished
from optim.evaluation import Evaluation
from optim.experiment import Experiment
from optim.hooks import Hook
from optim.names import STOP
from optim.outcome import Ending, Kind, Outcome, ended
from optim.progress import Parts
from optim.reporting import log, log_to_file, start_logging
from optim.setup import seed_everything, set_precision, starting_point
from optim.stopping import Stopper
from optim.training import Trainer

# of a training from Python, where main.py's default is meant for a published command
DEFAULTS = {"acc_steps": 1, "scheduler": "none", "log_freq": 1, "eval_freq": 0, "seed": 0}


def settings_of(steps: int, lr: float, batch_size: int, given: dict[str, Any]) -> Any:
    """The settings that main.py would have. Raises UserError with a line for each that is none, or wrong."""
    unknown = [f"fit: unknown setting {name!r}{config.nearest(name, FLAGS)}" for name in given.keys() - FLAGS]
    if unknown:
        raise UserError("\n".join(sorted(unknown)))
    own = {"iterations": steps, "lr": lr, "batch_size": batch_size}
    args = config.add_defaults({**DEFAULTS, **given, **own})
    problems = config.check(args)
    if problems:
        raise UserError("\n".join(str(problem) for problem in problems))
    config.check_world_size(args, distributed.launched_world_size())
    return args


def fit(
    objective: nn.Module,
    source: BatchSource,
    *,
    steps: int,
    lr: float = 1e-3,
    batch_size: int = 32,
    evaluations: Sequence[Evaluation] | Callable[[World], Sequence[Evaluation]] = (),
    hooks: Sequence[Hook] = (),
    folder: Path | str | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train an objective's network in place on one process, or on all that torchrun has started.

    steps: optimiser steps in all. batch_size: samples of a micro-batch. folder: of the experiment: it is
    locked, checkpointed, and gone on with where it was left, as exactly as by main.py; None: nothing is kept.
    settings: flags of main.py by name (opt, weight_decay, scheduler, acc_steps, seed, dtype, device,
    save_checkpoint_freq, track, ...). Weights begin as the caller made them.

    Returns the rows of metrics.jsonl, on the main process. Raises UserError for bad input.
    """
    began = time.time()
    args = settings_of(steps, lr, batch_size, settings)
    with ExitStack() as closing:
        if folder is None:
            folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="fit-"))
        world = closing.enter_context(
            distributed.start(args.distributed_backend, args.device, args.watchdog_minutes)
        )
        start_logging(world.is_main)
        ending = Ending(Path(folder), None)
        held: list[Experiment] = []  # on the main process

        def hold() -> None:
            held.append(Experiment(Path(folder), args.iterations))
            closing.callback(held[0].close)
            stopper.is_lost = lambda: held[0].lock.lost
            ending.take(held[0].lock)
            log_to_file(Path(folder) / "train.log")

        def run() -> Outcome:
            world.on_main(hold)
            ending.held = True
            if world.on_main(lambda: is_finished(Path(folder), args, by_name=False)):
                log.info(f"{folder} is finished already: nothing to do")
                return ended(Kind.FINISHED, "finished already", args.iterations)
            path = world.on_main(lambda: starting_point(Path(folder), args.use_pretrained))
            seed_everything(args.seed, world.rank)
            measured = evaluations(world) if callable(evaluations) else evaluations
            parts = Parts(objective, source, measured, hooks)
            trainer = Trainer(args, world, parts, Path(folder), ending)
            if path is not None:
                trainer.progress.load(path)
            return trainer.run(held[0] if held else None, stopper)

        stop_files = [Path(folder) / STOP]
        with Stopper(world, stop_files, args.max_runtime_minutes, began, args.stop_signals) as stopper:
            set_precision(args.deterministic)
            ending.recorded(run)
        return held[0].metrics.rows() if held else []
