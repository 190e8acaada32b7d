"""Training from Python: any network, source of batches and objective on the loop that main.py uses.

    rows = fit(NextToken(network), source, steps=200, lr=3e-3).rows
    fitted = fit(objective, source, steps=20_000, folder="runs/mine", save_checkpoint_freq=1000)
    fitted.outcome.is_done, fitted.metrics[-1]["learning_rate"]

docs/library.md shows a token array, a loss, a network and a callback of one's own.
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

import config
import distributed
from config.flags import FLAGS, GROUPS
from data.batch import BatchSource
from distributed.world import World
from errors import UserError
from models.weights import load_weights
from optim.checkpoint import load_checkpoint
from optim.chosen_hooks import hooks_of
from optim.done import is_finished
from optim.evaluation import Evaluation
from optim.experiment import Experiment
from optim.hooks import Hook
from optim.names import FINAL, STOP
from optim.objectives import load_own_state
from optim.outcome import Ending, Kind, Outcome, ended
from optim.progress import Parts
from optim.reporting import log, start_logging
from optim.setup import hold, seed_everything, set_precision, starting_point
from optim.stopping import Stopper
from optim.training import Trainer

_called: list[bool] = []  # by torchrun's processes
# of a training from Python, where main.py's default is meant for a published command
DEFAULTS = {"acc_steps": 1, "scheduler": "none", "log_freq": 1, "eval_freq": 0, "seed": 0}


# groups of flags that say what a network and its data are, which the caller of fit has made
OF_OTHERS = frozenset(
    flag.name for group in ("data", "model", "recurrent depth", "objective") for flag in GROUPS[group]
)
OF_TEXT = {
    "eval_samples",
    "pass_k",
    "sample_every",
    "sample_prompts",
    "sample_tokens",
    "sample_temperature",
    "core_data",
    "core_metric_every",
    "core_metric_max_per_task",
}
OF_MAIN = {"shard", "init_from", "config", "stop_file", "outcome_file", "selftest_resume"}
NOT_HERE = (OF_OTHERS - {"dtype", "compile"}) | OF_TEXT | OF_MAIN


@dataclass(frozen=True)
class Fitted:
    """rows: of metrics.jsonl, on the main process. outcome: how the training ended: `outcome.is_done`, or a
    stop (a signal, Ctrl-C, the end of its time, a pause) after which the same call goes on, given a folder.
    metrics: of each update that this call made, whatever log_freq is: step (from 1), loss, grad_norm (before
    clipping; None where it overflowed in float16), learning_rate (which the update used). The steps of a
    finished training, or of an earlier call, are in rows alone.

    Unpacks into rows and outcome.
    """

    rows: list[dict[str, Any]]
    outcome: Outcome
    metrics: list[dict[str, Any]]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.rows, self.outcome))


class _Metrics(Hook):
    """Keeps those of each step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def joined(self, run: Any) -> None:
        self.steps, self.schedule = run.steps, run.progress.schedule

    def stepped(self, step: int, loss: float) -> None:
        if self.steps.skipped:
            return
        norm = None if self.steps.overflows else float(self.steps.meter.last)
        rate = self.schedule.rate_at(step - 1)  # rates are numbered from 0, and update 1 is of the first
        self.kept.append({"step": step, "loss": loss, "grad_norm": norm, "learning_rate": rate})


def settings_of(given: dict[str, Any]) -> Any:
    """The settings that main.py would have. Raises UserError with a line for each that is none, or wrong."""
    known = {name: flag for name, flag in FLAGS.items() if name not in NOT_HERE}
    wrong = [f"fit: unknown setting {name!r}{config.nearest(name, known)}" for name in given.keys() - known]
    values = {}
    for name in given.keys() & known:
        try:
            values[name] = config.convert(known[name], given[name])
        except ValueError as error:
            wrong.append(f"fit: {name}: {error}")
    if wrong:
        raise UserError("\n".join(sorted(wrong)))
    args = config.add_defaults({**DEFAULTS, **values})
    # what may be tracked is known when the evaluations are
    problems = config.check(Namespace(**{**vars(args), "track": None}))
    if problems:
        raise UserError("\n".join(map(str, problems)))
    config.check_world_size(args, distributed.launched_world_size())
    return args


def _check_compile(args: Any, objective: nn.Module) -> None:
    """Leave out `compile`, with a note, for a network that cannot be compiled block by block."""
    if args.compile and not hasattr(objective.network, "compile_blocks"):
        log.info("note: compile has no effect on this network, which has no compile_blocks()")
        args.compile = False


def _final_weights(folder: Path, objective: nn.Module) -> None:
    """Put the weights of a training that is finished into its objective. Raises UserError."""
    state = load_checkpoint(folder / FINAL)
    load_weights(cast(nn.Module, objective.network), state["model"])
    load_own_state(objective, state.get("objective", {}))


def _refuse_second_call() -> None:
    """Raises UserError where torchrun's processes train a second time."""
    if distributed.under_torchrun():
        if _called:
            raise UserError("fit: torchrun's processes can meet once only; train one model in each launch")
        _called.append(True)


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
) -> Fitted:
    """Train an objective's network in place on one process, or on all that torchrun has started.

    steps: optimiser steps in all. batch_size: samples of a micro-batch. folder: of the experiment: it is
    locked, checkpointed, and gone on with where it was left, as exactly as by main.py; None: nothing is kept.
    settings: flags of main.py by name, except those of the network and the data (opt, weight_decay,
    scheduler, acc_steps, seed, dtype, device, save_checkpoint_freq, track, ...). Weights begin as the caller
    made them.

    Raises UserError for bad input, and where torchrun's processes call it a second time.
    """
    began = time.time()
    args = settings_of({"iterations": steps, "lr": lr, "batch_size": batch_size, **settings})
    metrics = _Metrics()
    _refuse_second_call()
    with ExitStack() as closing:
        if folder is None:
            folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="fit-"))
        place = Path(folder)
        world = closing.enter_context(
            distributed.start(args.distributed_backend, args.device, args.watchdog_minutes)
        )
        start_logging(world.is_main)
        _check_compile(args, objective)
        hooks = (*hooks, *world.on_all(lambda: hooks_of(args)))
        ending = Ending(place, None)
        held: list[Experiment] = []  # on the main process

        def run() -> Outcome:
            world.on_main(lambda: held.append(hold(place, args.iterations, ending, stopper, closing)))
            ending.held = True
            if world.on_main(lambda: is_finished(place, args, source.identity())):
                log.info(f"{place} is finished already: its weights are loaded")
                world.on_all(lambda: _final_weights(place, objective))
                return ended(Kind.FINISHED, "finished already", args.iterations)
            path = world.on_main(lambda: starting_point(place, args.use_pretrained))
            seed_everything(args.seed, world.rank)
            measured = evaluations(world) if callable(evaluations) else evaluations
            called = [*hooks, metrics]
            trainer = Trainer(args, world, Parts(objective, source, measured, called), place, ending)
            for hook in called:
                hook.joined(trainer)
            if path is not None:
                trainer.progress.load(path)
            return trainer.run(held[0] if held else None, stopper)

        with Stopper(world, [place / STOP], args.max_runtime_minutes, began, args.stop_signals) as stopper:
            set_precision(args.deterministic)
            outcome = ending.recorded(run)
        return Fitted(held[0].metrics.rows() if held else [], outcome, metrics.kept)
