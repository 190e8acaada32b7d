"""Train a model, or resume the training of an earlier run of the same command.

    python main.py --model lncot --dataset stdlib --n_layer 5 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3
    torchrun --nproc_per_node 2 main.py ...
    python main.py [RECIPE] flags           # what is trained; cotformer by default

    python main.py --selftest_resume        # does a killed run end with the same bits on this machine?

Exit codes: 0 finished (now or earlier), 2 bad input: fix it, 83 stopped cleanly with work left
(0 under torchrun, which would report anything else as a failure). outcome.json in the experiment's folder
says more: kind, reason, step.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import config
import distributed
from config.recipe import recipe_of
from errors import STOPPED
from optim.names import STOP, SUMMARY
from optim.outcome import Ending, Kind, Outcome, ended

if TYPE_CHECKING:
    from distributed.world import World


def build_and_run(args: Namespace, world: World, ending: Ending, closing: ExitStack, began: float) -> Outcome:
    """Everything between the command line and how the run ended; `closing` is left by the caller.

    Raises UserError.
    """
    from optim import initial
    from optim.chosen_hooks import hooks_of
    from optim.done import is_finished
    from optim.experiment import Experiment
    from optim.reporting import log, start_logging
    from optim.setup import hold, is_own_file, keep_freed_memory, set_precision, starting_point
    from optim.stopping import Stopper
    from optim.training import Trainer

    start_logging(world.is_main)
    for line in config.unused_settings(args) + config.notes_on_cut(args):
        log.info(f"note: {line}")
    folder = ending.folder
    hooks = world.on_all(lambda: hooks_of(args))  # before anything is written
    held: list[Experiment] = []  # on the main process

    stop_files = [folder / STOP, *([Path(args.stop_file)] if args.stop_file else [])]
    with Stopper(world, stop_files, args.max_runtime_minutes, began, args.stop_signals) as stopper:
        set_precision(args.deterministic)
        if world.device.type == "cpu":
            keep_freed_memory()
        world.on_main(lambda: held.append(hold(folder, args.iterations, ending, stopper, closing)))
        ending.held = True
        if world.on_main(lambda: is_finished(folder, args)):
            is_own = world.on_main(lambda: is_own_file(folder, args.use_pretrained))
            log.info(f"{folder} is finished already: nothing to do")
            if is_own:
                name = Path(args.use_pretrained).name
                log.info(f"to go back to {name} all the same, move {SUMMARY} and the newer checkpoints away")
            return ended(Kind.FINISHED, "finished already", args.iterations)
        # a wrong name is reported before data are prepared
        path = world.on_main(lambda: starting_point(folder, args.use_pretrained))
        first_weights = (
            world.on_main(lambda: initial.find(args.init_from, results=args.results_base_folder))
            if path is None and args.init_from is not None
            else None
        )
        parts = recipe_of(vars(args)).assemble(args, world, folder)
        parts = replace(parts, hooks=(*parts.hooks, *hooks))
        trainer = Trainer(args, world, parts, folder, ending)
        for hook in parts.hooks:
            hook.joined(trainer)
        progress = trainer.progress
        if path is not None:
            progress.load(path)
        elif first_weights is not None:
            progress.begin_with(first_weights)
        for line in parts.describe(progress.schedule.describe()):
            log.info(line)
        return trainer.run(held[0] if held else None, stopper)


def lacking_sources(args: Namespace) -> list[str]:
    from data.sources import lacking_sources as lacking  # late: --help needs no numpy

    return lacking(args)


def main(argv: list[str] | None = None) -> int:
    began = time.time()
    args = config.parse_args(argv, problems_of_sources=lacking_sources)

    worded = config.as_written(argv)

    def work() -> int:
        recipe_of(vars(args)).begin(args, sys.argv[1:] if argv is None else argv)
        if args.selftest_resume:
            from optim.selftest import selftest

            return selftest(args)
        copy = Path(args.outcome_file) if args.outcome_file else None
        ending = Ending(config.experiment_folder(args), copy, worded)
        with ExitStack() as closing:  # the experiment is given up after its outcome has been written

            def run() -> Outcome:
                config.check_world_size(args, distributed.launched_world_size())
                world = distributed.start(args.distributed_backend, args.device, args.watchdog_minutes)
                closing.push(world)
                return build_and_run(args, world, ending, closing, began)

            outcome = ending.recorded(run)
        return 0 if outcome.code == STOPPED and distributed.under_torchrun() else outcome.code

    return config.guarded("main.py", work, worded)


if __name__ == "__main__":
    distributed.run_and_end(main)
