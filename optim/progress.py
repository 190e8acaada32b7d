"""A training between two steps: all that a checkpoint holds, how it is put together, and how it is taken
up.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from config.groups.jobs import FULLY_SHARDED
from data.batch import BatchSource
from distributed import shard
from distributed.world import World
from errors import UserError
from models.network import ROUTER, roles_of
from models.weights import load_weights
from optim import checkpoint, history, initial
from optim.evaluation import Evaluation, HeldOut
from optim.foreign import foreign_of
from optim.hooks import COMPLETE, Hook, Stop, by_name
from optim.names import ABANDONED, BEST
from optim.objectives import extras, load_own_state, own_state, same_frozen
from optim.opening import open_checkpoint
from optim.optimizers import load_optimizer_state, make_optimizer
from optim.reporting import log
from optim.resumable import FORMAT, check_resumable
from optim.saving import Saver
from optim.schedules import make_scheduler
from optim.setup import autocast_dtype, is_own, named_file
from optim.step import OptimizerStep
from optim.tracked import Tracked


def _loadable(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a hook. Raises TypeError where a checkpoint that has it could not be loaded."""
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        with torch.serialization.safe_globals(checkpoint.NUMPY_TYPES):
            torch.load(file, weights_only=True)
    except Exception as error:  # whatever a user's object makes of torch
        raise TypeError(f"{name}.state() must return plain values: {type(error).__name__}") from error
    return state


@dataclass(frozen=True)
class Work:
    """What a sample is of: items, and floating-point operations of each, forward and backward."""

    items: int
    flops_per_item: float


@dataclass(frozen=True)
class Parts:
    """What a training is put together of.

    objective: a module of the form that optim/objectives describes; what its `network` computes is saved.
    items: what throughput counts, in the plural, and items_per_sample how many of them a sample has.
    flops_per_item: of a forward and backward pass; 0 where unknown. work_at: of the samples of the step after
    so many, where they are not alike; `work` has it of any training. describe: the first lines of a run,
    given the schedule in words.
    """

    objective: nn.Module
    source: BatchSource
    evaluations: Sequence[Evaluation] = ()
    hooks: Sequence[Hook] = ()
    items: str = "samples"
    items_per_sample: int = 1
    flops_per_item: float = 0.0
    work_at: Callable[[int], Work] | None = None
    describe: Callable[[str], list[str]] = lambda schedule: [schedule]

    def work(self, step: int) -> Work:
        """Of each sample of the step after so many."""
        if self.work_at is None:
            return Work(self.items_per_sample, self.flops_per_item)
        return self.work_at(step)


def check_parts(parts: Parts) -> None:
    """Raises UserError for parts that could not be trained, or that share a name."""
    names = [evaluation.name for evaluation in parts.evaluations]
    if len(set(names)) < len(names):
        raise UserError(f"evaluations need names of their own, not {', '.join(map(repr, names))}")
    unnamed = [each for each in parts.evaluations if not each.name and not isinstance(each, HeldOut)]
    if unnamed:
        raise UserError(f"an evaluation of your own needs a name: {type(unnamed[0]).__name__}.name is empty")


class Progress:
    """The state of a training. step: how many steps are taken. data: what the data are known by.

    asked: for which end a hook has asked. initial: the weights that --init_from gave. frozen: files of parts
    that are not trained, by name. rollbacks: steps to which a person has taken this training back;
    is_rollback: whether this run does so.
    """

    def __init__(self, args: Any, world: World, parts: Parts, folder: Path, saver: Saver) -> None:
        self.args, self.world, self.parts, self.folder, self.saver = args, world, parts, folder, saver
        check_parts(parts)
        self.network: Any = parts.objective.network  # of any class
        self.model = self._wrapped()
        self.extras = extras(parts.objective)
        self.optimizer = make_optimizer(cast(nn.Module, self.network), args, self.extras, world)
        self.schedule = make_scheduler(self.optimizer, args)
        self.steps = OptimizerStep(args, world, self.model, self.optimizer, parts.source)
        self.data = world.on_main(parts.source.identity)
        known = {evaluation.name: evaluation.quantities for evaluation in parts.evaluations}
        self.tracked: Tracked | None = None
        if args.track is not None:
            self.tracked = Tracked(args.track, known, args.eval_freq)
        self.asked: Stop | None = None
        self.step = 0
        self.initial: dict[str, str] | None = None
        self.frozen: dict[str, Any] = getattr(parts.objective, "frozen", {})
        self.rollbacks: list[int] = []
        self.is_rollback = False

    def _wrapped(self) -> nn.Module:
        """The objective on its device, as all processes train it together."""
        objective, world = self.parts.objective, self.world
        may_leave_unused = bool(objective.may_leave_unused)
        if self.args.shard == FULLY_SHARDED and world.size > 1:
            unused = []
            if may_leave_unused:
                unused = [name for name, role in roles_of(self.network).items() if role == ROUTER]
            return shard.ShardedObjective(objective, unused, world)
        return world.wrap(objective.to(world.device), may_leave_unused)

    def is_finite(self) -> bool:
        """Whether all weights are finite; every process must call this."""
        finite = torch.stack([shard.own(p).isfinite().all() for p in self.model.parameters()])
        return not self.world.largest(int(not bool(finite.all())))

    @property
    def precision(self) -> str:
        """What --dtype means on this device."""
        return str(autocast_dtype(self.args.dtype, self.world.device)).removeprefix("torch.")

    def state(self) -> dict[str, Any] | None:
        """The whole state, on the main process; every process must call this."""
        is_main = self.world.is_main
        ranks = self.world.gather(checkpoint.random_states(self.world.device))
        weights = shard.gathered(self.network.state_dict(), is_main)
        optimizer = shard.gathered(shard.state_of(self.optimizer, self.world), is_main)
        if not is_main:
            return None
        source = self.parts.source
        return {
            "format": FORMAT,
            "itr": self.step,
            "args": vars(self.args),
            "world_size": self.world.size,
            "model": weights,
            **self._objective(),
            "optimizer": optimizer,
            "scheduler": self.schedule.state_dict(),
            "rng": ranks,
            **self.steps.state_dict(),
            "data": {
                "data_seed": self.args.data_seed,
                "next_sample": self.step * self.args.batch_size * self.args.acc_steps,
                **source.size(),
                **self.data,
            },
            **source.parts(),
            "precision": self.precision,
            **self._evaluations(),
            **self._hooks(),
            "rollbacks": list(self.rollbacks),
            **self.initial_part(),
        }

    def _objective(self) -> dict[str, Any]:
        """What the objective trains beside its network."""
        kept = own_state(self.parts.objective)
        return {"objective": kept} if kept else {}

    def _evaluations(self) -> dict[str, Any]:
        """The one without a name under a key of its own, as checkpoints have always had it."""
        found: dict[str, Any] = {}
        for evaluation in self.parts.evaluations:
            if evaluation.name:
                found.setdefault("evaluations", {})[evaluation.name] = evaluation.state()
            else:
                found["evaluation"] = evaluation.state()
        if self.tracked is not None:
            found["best"] = self.tracked.state()
        return found

    def _hooks(self) -> dict[str, Any]:
        """What hooks keep, and that one has found the training complete: a pause is over with its run."""
        found: dict[str, Any] = {}
        kept = {name: hook.state() for name, hook in by_name(self.parts.hooks).items()}
        if any(kept.values()):
            found["hooks"] = {name: _loadable(name, state) for name, state in kept.items() if state}
        if self.asked is not None and self.asked.kind == COMPLETE:
            found["complete"] = self.asked.reason
        return found

    def initial_part(self) -> dict[str, Any]:
        """Of a state, a summary and a fingerprint: the files of the weights that the run began with, where
        --init_from gave them, and of what the objective holds and does not train.
        """
        files = {"initial": self.initial, "frozen": self.frozen}
        return {name: value for name, value in files.items() if value}

    def begin_with(self, path: Path) -> None:
        """Take the weights of another training, and nothing else of it.

        Raises UserError where they do not fit.
        """
        self.initial = self.world.on_main(lambda: initial.describe(path, self.args.init_from))
        state = self.world.on_all(lambda: initial.load(self.network, path))
        log.info(f"began with the weights of {path}")
        differs = self.parts.source.differs(state)
        if differs:
            log.warning(f"warning: {differs}")

    def load(self, path: Path) -> None:
        """Take up a checkpoint of this training loop.

        Raises UserError where it is of another run, or damaged.
        """
        extended = self.world.on_all(lambda: self._take_up(path))
        log.info(f"resumed from {path} at step {self.step}")
        if is_own(self.folder, path):
            is_best = path.name == BEST  # which is no place to go on from by itself
            self.saver.resumed_from = self.folder / path.name
            self.saver.saved_step = 0 if is_best else self.step
            wanted = named_file(self.folder, self.args.use_pretrained)
            if wanted is not None and wanted.resolve() == path.resolve():
                self._roll_back()
        tracked = self.tracked
        has_best = self.world.on_main(lambda: (self.folder / BEST).exists())
        if tracked is not None and tracked.value is not None and not has_best:
            log.info(f"note: there is no {BEST} here; the best {self.args.track} is looked for anew")
            tracked.forget()
        if extended:
            log.info(extended)
            self.asked = None  # there is more to do
            own = self.saver.resumed_from
            if own is not None:  # another experiment's files are not ours to rename
                self.saver.resumed_from = self.world.on_main(lambda: history.keep_final(own))

    def _roll_back(self) -> None:
        """A person takes the training back to the checkpoint that has been loaded: what came after it is
        set aside.
        """
        self.is_rollback = True
        if self.rollbacks[-1:] != [self.step]:
            self.rollbacks.append(self.step)
        gone = self.world.on_main(lambda: history.roll_back(self.folder, self.step))
        if gone:
            log.info(
                f"rolled back to step {self.step}: {', '.join(gone)} set aside under names that end in"
                f" .{ABANDONED}"
            )

    def _take_up(self, path: Path) -> str | None:
        """What `load` does on each process; returns what the schedule says of an extension."""
        state = open_checkpoint(path)
        check_resumable(path, state, self.args, self.data)
        kind = foreign_of(state)
        if kind is not None:
            names = [name for name, _ in self.network.named_parameters()]
            state, note = kind.completed(state, self._own(state["itr"]), names, path)
            log.info(f"note: {note}")
        try:
            load_weights(self.network, state["model"])
            load_own_state(self.parts.objective, state.get("objective", {}))
            self.frozen = same_frozen(self.frozen, state.get("frozen", {}))
            load_optimizer_state(self.optimizer, state["optimizer"])
        except UserError as error:
            raise UserError(f"cannot resume {path}: {error}") from None
        extended = self.schedule.load_state_dict(state["scheduler"], self.args.extend)
        self.steps.load_state_dict(state)
        self.step = state["itr"]
        self._keep_steps(state["args"].get("keep_steps") or [])
        self.rollbacks, self.initial = list(state.get("rollbacks", [])), state.get("initial")
        named = state.get("evaluations", {})
        for evaluation in self.parts.evaluations:
            kept = named.get(evaluation.name) if evaluation.name else state.get("evaluation")
            evaluation.take_up(kept, state["args"])
        if self.tracked is not None:
            self.tracked.take_up(state.get("best"))
        self._take_up_hooks(state.get("hooks", {}))
        if "complete" in state:
            self.asked = Stop(COMPLETE, state["complete"])
        if self.world.rank < len(state["rng"]):
            checkpoint.restore_random_states(state["rng"][self.world.rank], self.world.device)
        self._note_what_changed(state)
        return extended

    def _take_up_hooks(self, states: dict[str, Any] | list[dict[str, Any]]) -> None:
        """states: by the names of hooks, or, as earlier code kept them, in their order."""
        hooks = by_name(self.parts.hooks)
        kept = dict(zip(hooks, states, strict=False)) if isinstance(states, list) else states
        for name, hook in hooks.items():
            if kept.get(name):
                hook.take_up(kept[name])

    def _own(self, step: int) -> dict[str, Any]:
        """What this run would go on with after a step whose checkpoint held nothing beside the model."""
        return {
            "args": vars(self.args),
            "world_size": self.world.size,
            "optimizer": Optimizer.state_dict(self.optimizer),  # torch's sharded one gathers its own first
            "scheduler": {**self.schedule.plan(), "taken": step},
            "rng": [checkpoint.random_states(self.world.device)] * self.world.size,
            **self.steps.state_dict(),
        }

    def _note_what_changed(self, state: dict[str, Any]) -> None:
        """Lines where this run computes otherwise than the one that wrote a checkpoint."""
        then = state.get("precision", self.precision)
        if then != self.precision:
            log.info(
                f"note: the training so far computed in {then}, and goes on in {self.precision}, which is"
                f" what --dtype {self.args.dtype} means on this device; --dtype {then} keeps to the former"
            )
        if state["world_size"] != self.world.size:
            log.info(
                f"the checkpoint was written by {state['world_size']} processes, now there are"
                f" {self.world.size}: same samples and effective batch, sums in another order"
            )

    def _keep_steps(self, before: Sequence[int]) -> None:
        """Steps whose checkpoints an earlier run was asked to keep are kept for good: they cannot be
        known from a run's own flags.
        """
        passed = [
            step
            for step in sorted(self.saver.kept_steps)
            if step < self.step and not (self.folder / f"ckpt_{step}.pt").exists()
        ]
        if passed:
            which = "that step" if len(passed) == 1 else "these steps"
            log.info(
                f"note: --keep_steps {' '.join(map(str, passed))}: passed already, and there is no checkpoint"
                f" of {which}"
            )
        self.saver.kept_steps |= set(before)
        self.args.keep_steps = sorted(self.saver.kept_steps) or None  # for the runs after this one
