"""One optimiser step: its micro-batches forward and backward, whether its numbers can be used, and the
update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data.batch import Batch, BatchSource
from data.order import splitmix64
from distributed.shard import whole, with_gradient
from distributed.world import World
from errors import BadNumbers, OwnError
from optim.captured import CapturedBatches
from optim.setup import autocast_dtype, autocaster

BAD_IN_A_ROW = 10  # skipped steps, after which a run stops
OVERFLOWS_IN_A_ROW = 20  # of the gradient in float16: the loss scaler gives way by halves, from 65536
SHOWN_SAMPLES = 8  # of a bad batch


@dataclass
class GradientMeter:
    """Norms since the last evaluation, on the CPU, and how many steps had none: those that the scaler of
    float16 skipped for an overflow.
    """

    last: Tensor
    largest: Tensor
    total: Tensor
    count: int
    overflows: int = 0

    @classmethod
    def empty(cls) -> GradientMeter:
        zero = torch.zeros(())
        return cls(zero, zero, zero, 0)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> GradientMeter:
        """That of a checkpoint, or a new one where earlier code has let an overflow into it, which would
        stay.
        """
        last, largest, total = (state[name].cpu() for name in ("last", "largest", "total"))
        is_sound = bool(torch.stack((last, largest, total)).isfinite().all())
        return (
            cls(last, largest, total, state["count"], state.get("overflows", 0)) if is_sound else cls.empty()
        )

    def add(self, norm: Tensor) -> None:
        self.last, self.largest, self.total = norm, torch.maximum(self.largest, norm), self.total + norm
        self.count += 1

    def values(self) -> dict[str, float]:
        return {
            "grad_norm": float(self.last),
            "max_grad_norm": float(self.largest),
            "mean_grad_norm": float(self.total) / max(self.count, 1),
        }


class OptimizerStep:
    """Takes the steps of a training, all processes together.

    meter: gradient norms. skipped, overflows: how many steps up to the last one were passed over, or
    overflowed, in a row. watchers: called with a step's number, from 1, once its gradients are complete
    and not clipped yet, on all processes; what they see they must leave as it is.
    """

    def __init__(
        self, args: Any, world: World, model: nn.Module, optimizer: Optimizer, source: BatchSource
    ) -> None:
        """model: the objective, as the world has wrapped it."""
        self.args, self.world, self.model, self.optimizer = args, world, model, optimizer
        self.source = source
        self.autocast = autocaster(args.dtype, world.device)
        self.scaler = torch.amp.GradScaler(
            world.device.type, enabled=autocast_dtype(args.dtype, world.device) == torch.float16
        )
        self.meter = GradientMeter.empty()
        self.skipped = self.overflows = 0
        self.watchers: list[Callable[[int], object]] = []
        self.graphs: CapturedBatches | None = None
        if getattr(args, "cuda_graphs", False):  # which some recipes do not have
            self.graphs = CapturedBatches(self._pass, world.device)

    def state_dict(self) -> dict[str, Any]:
        """Parts of a checkpoint."""
        return {
            "scaler": self.scaler.state_dict(),
            "gradient_meter": dict(vars(self.meter)),
            "skipped": self.skipped,
            "overflows": self.overflows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint, also from before there were all of these parts."""
        self.scaler.load_state_dict(state["scaler"])
        self.meter = GradientMeter.restored(state["gradient_meter"])
        self.skipped, self.overflows = state.get("skipped", 0), state.get("overflows", 0)

    def take(self, step: int) -> tuple[Tensor, str | None]:
        """Take the step after `step`. Returns the mean loss of this process's micro-batches, on the CPU, and
        why the step was passed over, if it was.

        Raises BadNumbers where loss or gradient are such that the step must not be taken and the training not
        go on.
        """
        losses = self._accumulate(step)
        self.scaler.unscale_(self.optimizer)
        parameters = with_gradient(self.model)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # the one wait for the device; in float16 the scaler's step has another
        values = torch.stack([*losses, whole(norm)]).cpu()
        wrong = self._what_is_wrong(step, values[:-1], values[-1])
        if wrong is None:
            for watch in self.watchers:
                watch(step + 1)
            self._update(parameters, norm, values[-1])
        elif self.args.on_bad_step == "stop" or self.skipped + 1 == BAD_IN_A_ROW:
            raise BadNumbers(wrong)
        self.skipped = 0 if wrong is None else self.skipped + 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=self.graphs is None)
        return values[:-1].sum(), wrong

    def _micro_batches(self, step: int) -> tuple[int, Iterable[Batch]]:
        """How many items all micro-batches of a step have, and this process's share of these."""
        args, world, source = self.args, self.world, self.source
        begin = step * args.acc_steps
        mine = range(begin + world.rank, begin + args.acc_steps, world.size)
        batches = (source.samples(step, micro * args.batch_size, args.batch_size) for micro in mine)
        items = source.items(step, begin * args.batch_size, args.acc_steps * args.batch_size)
        if items is not None:
            return items, batches  # each is read while the device computes the one before
        read = list(batches)
        return int(world.sum(torch.tensor(sum(batch.count for batch in read)))), read

    def _accumulate(self, step: int) -> list[Tensor]:
        """Gradients of this process's share of the micro-batches, whose sum over the processes is divided by
        their number; returns the losses, each times the number of processes and its share of the items.
        """
        args, world = self.args, self.world
        items, batches = self._micro_batches(step)
        mine = args.acc_steps // world.size
        losses, read = [], 0
        for turn, batch in enumerate(batches):
            read += batch.count
            micro = turn * world.size + world.rank
            if batch.count < 1:
                raise self._nothing_counts(step, micro)
            torch.manual_seed(splitmix64(splitmix64(args.seed) ^ (step * args.acc_steps + micro)) >> 1)
            # where all have as many items, exactly the number of micro-batches of a process
            share = items / (batch.count * world.size)
            with world.accumulating(self.model, last=turn == mine - 1):
                if self.graphs is None:
                    losses.append(self._pass(batch.to(world.device), share))
                else:
                    losses.append(self.graphs(batch, share))
        if world.size == 1 and read != items:
            kind = type(self.source).__name__
            raise ValueError(
                f"the batches of {kind} count {read} items in step {step + 1}, items() says {items}"
            )
        return losses

    def _pass(self, batch: Batch, share: float | Tensor) -> Tensor:
        """Forward and backward of a batch on the device; returns its loss over share."""
        with self.autocast():
            loss = self.model(batch).mean / share
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _nothing_counts(self, step: int, micro: int) -> OwnError:
        """That a micro-batch has no mean loss; micro: its number in the step."""
        size = self.args.batch_size
        first = (step * self.args.acc_steps + micro) * size
        where = self.source.describe(first, min(size, SHOWN_SAMPLES), size > SHOWN_SAMPLES)
        return OwnError(
            f"step {step + 1}: nothing counts in micro-batch {micro}, samples {first} to {first + size - 1}"
            f" of the order, {where}: a source must leave such samples out, or --batch_size be larger"
        )

    def _update(self, parameters: list[nn.Parameter], norm: Tensor, norm_on_cpu: Tensor) -> None:
        if self.args.grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.args.grad_clip, norm)
        if self.overflows:
            self.meter.overflows += 1
        else:
            self.meter.add(norm_on_cpu)
        self.scaler.step(self.optimizer)

    def _what_is_wrong(self, step: int, losses: Tensor, norm: Tensor) -> str | None:
        """Why the step that these micro-batches make must not be taken, in words; the same on every
        process. losses, norm: on the CPU.
        """
        values, size = losses.double(), float(norm)
        finite, limit = math.isfinite(size), self.args.grad_norm_limit
        # which the scaler skips
        self.overflows = self.overflows + 1 if self.scaler.is_enabled() and not finite else 0
        bad_norm = (finite and limit is not None and size > limit) or (
            not finite and not 0 < self.overflows < OVERFLOWS_IN_A_ROW
        )
        if not self.world.largest(int(bad_norm or not bool(values.isfinite().all()))):
            return None
        everyone = self.world.gather(values.tolist())
        return self.world.broadcast(self._describe(step, everyone, size) if self.world.is_main else None)

    def _describe(self, step: int, losses: list[list[float]], norm: float) -> str:
        """A step that must not be taken. losses: as `_accumulate` returns them, of each process."""
        args = self.args
        loss_of = {}  # of each micro-batch
        for rank, of_rank in enumerate(losses):
            for turn, share in enumerate(of_rank):
                loss_of[turn * len(losses) + rank] = share * len(of_rank)
        bad = sorted(micro for micro, loss in loss_of.items() if not math.isfinite(loss))
        first, count = step * args.acc_steps * args.batch_size, args.acc_steps * args.batch_size
        what = f"the loss is {sum(loss_of.values()) / len(loss_of):.4g}"
        if bad:
            first, count = first + bad[0] * args.batch_size, args.batch_size
            what = f"the loss of micro-batch {bad[0]} is {loss_of[bad[0]]}"
        where = self.source.describe(first, min(count, SHOWN_SAMPLES), count > SHOWN_SAMPLES)
        return (
            f"step {step + 1}: {what}, the gradient norm {norm:.4g}; "
            f"samples {first} to {first + count - 1} of the order, {where}"
        )
