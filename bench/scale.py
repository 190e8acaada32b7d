"""Memory of a training by formula (models/footprint.py) beside what is measured, over a grid of models.

    python bench/scale.py [--n_embd 128] [--n_head 4] [--batch_size 4] [--sequence_length 256]
        [--vocab_size 512] [--processes 1]

On a CPU every tensor is counted from its making to its end, to the byte; what a kernel takes while it runs is
not seen. On CUDA the allocator's own counts are taken. A row has measured bytes of the weights, of what is
kept for the backward pass, of the optimiser's state and of the peak of a step, and the formula's over them.
--processes N: of the first of N with --shard full; the others are not there, so what they send is nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import weakref
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.common import arguments, autocast, flags, report
from data.batch import Batch
from distributed.shard import ShardedObjective, is_sharded, own
from distributed.world import World
from models import make_model_from_args
from models.footprint import Training, footprint
from models.settings import ModelSettings
from optim.objectives import NextToken
from optim.optimizers import make_optimizer

LOOP: dict[str, Any] = {"n_layer": 4, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 3}
GPT: dict[str, Any] = {"model": "base", "block": "modern", "window_pattern": "SSSL", "rope_dtype": "bfloat16"}
GRID: dict[str, dict[str, Any]] = {
    "base": {"model": "base", "n_layer": 4},
    "but": {"model": "but", **LOOP},
    "cot": {"model": "cot", **LOOP},
    "lncot": LOOP,
    "lncot, wide and short": {**LOOP, "n_embd": 256, "sequence_length": 64, "batch_size": 8},
    "lncot, checkpointing by pass": {**LOOP, "activation_checkpointing": "pass"},
    "lncot, checkpointing by block": {**LOOP, "activation_checkpointing": "block"},
    "lncot, reference": {**LOOP, "attention": "reference"},
    "adm, all go on": {**LOOP, "model": "adm", "training_length_factor": [1.0, 1.0]},
    "adm, a half and a quarter go on": {**LOOP, "model": "adm", "training_length_factor": [0.5, 0.25]},
    "gpt": {**GPT, "n_layer": 5, "opt": "muon"},
    "gpt, shared keys": {**GPT, "n_layer": 4, "n_kv_head": 2, "opt": "muon"},
    "gpt, checkpointing by block": {**GPT, "n_layer": 4, "activation_checkpointing": "block"},
    "gpt, large vocabulary": {**GPT, "n_layer": 2, "vocab_size": 50257},
    "base, large vocabulary": {"model": "base", "n_layer": 2, "vocab_size": 50304},
    "base, lion": {"model": "base", "n_layer": 4, "opt": "lion"},
}
IN_SHARDS = ("lncot", "lncot, checkpointing by block", "adm, all go on", "gpt", "gpt, large vocabulary")


class LiveBytes(TorchDispatchMode):
    """Sums the bytes of tensors that are made or read within, while they live. known: those not to count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live: dict[int, weakref.ref[Any]] = {}  # storages, whose sizes may change

    @property
    def now(self) -> int:
        storages = (reference() for reference in list(self.live.values()))
        return sum(storage.nbytes() for storage in storages if storage is not None)

    def _see(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            storage = own(tensor).untyped_storage()
            key = storage._cdata
            if key not in self.known and key not in self.live:
                self.live[key] = weakref.ref(storage)
                weakref.finalize(storage, self.live.pop, key, None)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._see((args, kwargs))
        out = func(*args, **(kwargs or {}))
        self._see(out)
        self.peak = max(self.peak, self.now)
        return out


class AllocatedBytes:
    """As LiveBytes, of the allocator of CUDA."""

    def __init__(self) -> None:
        self.begin = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def __enter__(self) -> AllocatedBytes:
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated() - self.begin

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self.begin


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(own(tensor).nbytes for tensor in tensors)


def states_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Without counts of steps."""
    for state in optimizer.state.values():
        yield from (value for key, value in state.items() if isinstance(value, Tensor) and key != "step")


@contextmanager
def first_of(processes: int, device: str) -> Iterator[World]:
    """The first of several processes, of which the others are not there."""
    if processes == 1:
        yield World(torch.device(device))
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield World(torch.device(device), size=processes)
    finally:
        dist.destroy_process_group()


def measured(args: Namespace, world: World, dtype: str) -> dict[str, int]:
    """Bytes of the second step of a training, whose optimiser has its state from the first."""
    torch.manual_seed(0)
    device = world.device
    model = make_model_from_args(args).to(device)
    objective: nn.Module = NextToken(model)
    if world.size > 1:
        objective = ShardedObjective(objective, [], world)
    optimizer = make_optimizer(model, args, world=world)
    idx = torch.randint(0, args.vocab_size, (args.batch_size, args.sequence_length), device=device)
    batch = Batch({"inputs": idx, "targets": idx}, idx.numel())

    def forward() -> Tensor:
        with autocast(device.type, dtype):
            loss: Tensor = objective(batch).mean
        return loss

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    forward().backward()
    update()
    weights, states = bytes_of(model.parameters()), bytes_of(states_of(optimizer))
    there = chain(model.parameters(), model.buffers(), states_of(optimizer), [idx])
    steps = (state["step"] for state in optimizer.state.values() if "step" in state)
    known = map(own, chain(there, steps))
    live: Any = LiveBytes(known) if device.type == "cpu" else AllocatedBytes()
    with live:
        loss = forward()
        kept = live.now
        loss.backward()
        del loss
        gradients = live.now
        update()
    found = {"weights": weights, "gradients": gradients, "states": states}
    if not is_sharded(model):  # weights are whole then too
        found["kept"] = kept
    return {**found, "peak": live.peak + weights + states}


def row(args: Namespace, world: World, dtype: str) -> dict[str, Any]:
    """Measured bytes, and the formula's over them."""
    shares = args.training_length_factor
    how = Training(
        args.batch_size,
        dtype,
        args.opt,
        processes=world.size,
        shard=args.shard,
        shares=None if shares is None else tuple(shares),
        cuda=world.device.type != "cpu",
    )
    memory, found = footprint(ModelSettings.from_args(args), how), measured(args, world, dtype)
    ratio = {name: getattr(memory, name) / size for name, size in found.items()}
    return {"measured": found, "formula_over_measured": ratio, "phase": memory.largest_phase}


def main() -> None:
    shape = {"n_embd": 128, "n_head": 4, "batch_size": 4, "sequence_length": 256, "vocab_size": 512}
    args = arguments(__doc__, **shape, processes=1)
    shape = {name: getattr(args, name) for name in shape}
    worst: dict[str, float] = {}
    grid, shards = GRID, {}
    if args.processes > 1:
        grid, shards = {name: GRID[name] for name in IN_SHARDS}, {"shard": "full", "opt": "adamw"}
    with first_of(args.processes, args.device) as world:
        for dtype, (name, given) in product(("float32", "bfloat16"), grid.items()):
            found = row(flags(**{**shape, **given, **shards}), world, dtype)
            report("scale", args.device, way=name, dtype=dtype, processes=world.size, **found)
            for what, ratio in found["formula_over_measured"].items():
                worst[what] = max(worst.get(what, 0.0), abs(ratio - 1))
    report("scale", args.device, largest_error=worst)


if __name__ == "__main__":
    main()
