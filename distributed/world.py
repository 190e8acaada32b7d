"""The processes of a run and what they send each other.

Everything that is not a gradient goes through a gloo group: collectives on the GPU around slow storage hang
in the field.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.launch import launched_world_size
from errors import OwnError, UserError
from files import TRANSIENT_ERRORS

GRADIENT_TIMEOUT = timedelta(minutes=30)  # at least
# at least: one process may prepare data or check a checkpoint while the others wait
CONTROL_TIMEOUT = timedelta(hours=4)


def pick_device(device: str, local_rank: int = 0) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means here.

    Raises UserError where it is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise (UserError if local_rank else OwnError)(
            f"--device {device}: this machine has no CUDA device; use --device cpu"
        )
    index = local_rank if launched_world_size() > 1 or device == "cuda" else int(device.split(":")[1])
    if index >= torch.cuda.device_count():
        raise OwnError(f"--device cuda:{index}: there are only {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def _tried(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """The result of `work`, or the error that it raises, for all processes to raise; only a transient OSError
    stays one.
    """
    try:
        return work(), None
    except UserError as error:
        shared = UserError(str(error))  # an OwnError no longer is one
        shared.kind = error.kind
        return None, shared
    except OSError as error:
        if error.errno in TRANSIENT_ERRORS:
            return None, OSError(error.errno, error.strerror, error.filename or "storage")
        return None, UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error))


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. Alone, every collective is the identity."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: Any = field(default=None, repr=False)  # gloo group for all that is not a gradient

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module, may_leave_unused: bool) -> nn.Module:
        """The module whose backward averages gradients over the processes.

        may_leave_unused: a step may leave a parameter without a gradient, such as a router that no token
        reached. torch must search for these only then. The search also keeps the first layout of the buckets,
        so that sums of more than two numbers, whose order matters, are the same before and after a resume.
        """
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            process_group=dist.group.WORLD,
            find_unused_parameters=may_leave_unused or self.size > 2,
            gradient_as_bucket_view=True,
        )

    @contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Gradients that are not in shards are averaged only after the last micro-batch of a step."""
        if last or not isinstance(model, nn.parallel.DistributedDataParallel):
            yield
        else:
            with model.no_sync():
                yield

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes of a CPU tensor."""
        if self.size > 1:
            dist.all_reduce(values, group=self.control)
        return values

    def largest(self, flag: int) -> int:
        """The largest of the processes' flags."""
        if self.size == 1:
            return flag
        value = torch.tensor(flag)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
        return int(value)

    def gather(self, value: Any) -> list[Any]:
        """On the main process, every process's value by rank; elsewhere nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, group=self.control)
        return values or []

    def to_main(self, value: Any, source: int) -> Any:
        """One process's value, on the main process; these two must call this."""
        if source == 0:
            return value
        box = [value]
        if self.is_main:
            dist.recv_object_list(box, source, self.control)
        else:
            dist.send_object_list(box, 0, self.control)
        return box[0]

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.control)
        return box[0]

    def broadcast_tensor(self, tensor: Tensor, source: int) -> None:
        """Give one process's contiguous tensor to all, in place and to the bit, where gradients go."""
        if self.size > 1:
            dist.broadcast(tensor.view(-1).view(torch.uint8), source)

    def on_main(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on the main process, on every process; a UserError or OSError there is
        raised everywhere.
        """
        value, wrong = self.broadcast(_tried(work) if self.is_main else None)
        if wrong is not None:
            raise wrong
        return value

    def on_all(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on this process; the UserErrors and OSErrors of all are raised everywhere,
        so that the main one reports them.
        """
        value, mine = _tried(work)
        errors = {str(error): error for error in self.broadcast(self.gather(mine)) if error is not None}
        if len(errors) > 1:
            raise UserError("\n".join(errors))
        for error in errors.values():
            raise error
        return value

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: object, *unused: object) -> None:
        """Leave the other processes: together where the work is done, without waiting where it has failed."""
        if self.size == 1:
            return
        if kind is None:
            with suppress(RuntimeError):  # another has failed after its work
                dist.barrier(group=self.control)
        dist.destroy_process_group()


def join(backend: str | None, device: str, watchdog_minutes: float = 0.0) -> World:
    """Join the processes that torchrun started, or run alone. Raises UserError for a backend that cannot work
    here.

    watchdog_minutes: after which a hanging process is ended; the others wait for at least that long.
    """
    size, local_rank = launched_world_size(), int(os.environ.get("LOCAL_RANK", "0"))
    if backend is not None and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"--distributed_backend {backend} needs torchrun: torchrun --nproc_per_node N main.py ..."
        )
    where = pick_device(device, local_rank)
    if backend == "nccl" and where.type != "cuda":
        raise UserError("--distributed_backend nccl needs CUDA devices; use gloo")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size == 1:
        return World(where)
    backend = backend or ("nccl" if where.type == "cuda" else "gloo")
    patience = timedelta(minutes=2 * watchdog_minutes)
    dist.init_process_group(
        backend, timeout=max(GRADIENT_TIMEOUT, patience), device_id=where if backend == "nccl" else None
    )
    control = dist.new_group(backend="gloo", timeout=max(CONTROL_TIMEOUT, patience))
    return World(where, dist.get_rank(), size, local_rank, control)
