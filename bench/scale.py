"""Memory of a training by formula (models/footprint.py) beside what is measured, over a grid of models.

    python bench/scale.py [--n_embd 128] [--n_head 4] [--batch_size 4] [--sequence_length 256]
        [--vocab_size 512]
    torchrun --nproc_per_node 2 bench/scale.py --shard full      # or optimizer

On a CPU every tensor is counted from its making to its end, to the byte; what a kernel takes while it runs is
not seen. On CUDA the allocator's own counts are taken. A row has measured bytes of the weights, of what is
kept for the backward pass, of the optimiser's state and of the peak of a step, and the formula's over them.
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
from contextlib import ExitStack
from itertools import chain, product
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.common import arguments, autocast, flags, report
from config.groups.jobs import WHOLE
from data.batch import Batch
from distributed.shard import ShardedObjective, own
from distributed.world import World, join
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

# more weights than activations, which is what shards are for
HEAVY: dict[str, Any] = {"n_embd": 384, "sequence_length": 32, "vocab_size": 4096, "n_layer": 4}
IN_SHARDS: dict[str, dict[str, Any]] = {
    **{name: GRID[name] for name in ("base", "lncot", "lncot, checkpointing by block", "adm, all go on")},
    "base, heavy": {**GRID["base"], **HEAVY},
    "lncot, heavy": {**GRID["lncot"], **HEAVY},
    "adm, heavy": {**GRID["adm, all go on"], **HEAVY},
    "gpt": {**GRID["gpt"], "opt": "adamw"},
    "gpt, heavy": {**GRID["gpt"], **HEAVY, "opt": "adamw"},
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made within, while they live; those of shards are made empty and
    grow. known: tensors that were there.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}
        self._patched = ExitStack()

    def __enter__(self) -> LiveBytes:
        resize = torch.UntypedStorage.resize_

        def counted(storage: torch.UntypedStorage, size: int) -> object:
            out = resize(storage, size)
            self._count(storage)
            return out

        self._patched.enter_context(mock.patch.object(torch.UntypedStorage, "resize_", counted))
        super().__enter__()
        return self

    def __exit__(self, *unused: Any) -> None:
        self._patched.close()
        super().__exit__(*unused)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        if key not in self.sizes:
            weakref.finalize(storage, self._end, key)
        self.now += size - self.sizes.get(key, 0)
        self.sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _end(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


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


def states_of(optimizer: Any) -> Iterator[Tensor]:
    """Of this process, without counts of steps."""
    for state in getattr(optimizer, "optim", optimizer).state.values():
        yield from (own(value) for key, value in state.items() if isinstance(value, Tensor) and key != "step")


def measured(args: Namespace, world: World, dtype: str) -> dict[str, int]:
    """Bytes of the third step of a training, whose optimiser has its state from the first, and DDP its
    buckets from the second.
    """
    torch.manual_seed(0)
    device = world.device.type
    model = make_model_from_args(args).to(world.device)
    is_full = args.shard == "full" and world.size > 1
    trained = (
        ShardedObjective(NextToken(model), [], world) if is_full else world.wrap(NextToken(model), False)
    )
    optimizer = make_optimizer(model, args, {}, world)
    idx = torch.randint(0, args.vocab_size, (args.batch_size, args.sequence_length), device=device)
    batch = Batch({"inputs": idx, "targets": idx}, idx.numel())

    def forward() -> Tensor:
        with autocast(device, dtype):
            loss: Tensor = trained(batch).mean
        return loss

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        forward().backward()
        buckets = [own(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
        update()
    if world.size == 1 or is_full:
        buckets = []
    mine = [own(parameter) for parameter in model.parameters()]
    weights, states = bytes_of(mine), bytes_of(states_of(optimizer))
    inner: Any = getattr(optimizer, "optim", optimizer)
    steps = (state["step"] for state in inner.state.values() if "step" in state)
    there = chain(mine, model.buffers(), states_of(optimizer), [idx], steps, buckets)
    live: Any = LiveBytes(there) if device == "cpu" else AllocatedBytes()
    with live:
        loss = forward()
        kept = live.now
        loss.backward()
        del loss
        gradients = live.now
        update()
    held = weights + states + bytes_of(buckets)
    found = {"weights": weights, "states": states, "peak": live.peak + held}
    if not is_full:  # else weights that are whole are among them, and gradients that are sent
        found |= {"gradients": gradients + bytes_of(buckets), "kept": kept}
    return found


def row(args: Namespace, world: World, dtype: str) -> dict[str, Any]:
    """Measured bytes of the process with the most, and the formula's over them; on the main process."""
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
    memory, of_all = footprint(ModelSettings.from_args(args), how), world.gather(measured(args, world, dtype))
    found = {name: max(each[name] for each in of_all) for name in (of_all[0] if of_all else ())}
    ratio = {name: getattr(memory, name) / size for name, size in found.items()}
    return {"measured": found, "formula_over_measured": ratio, "phase": memory.largest_phase}


def main() -> None:
    shape = {"n_embd": 128, "n_head": 4, "batch_size": 4, "sequence_length": 256, "vocab_size": 512}
    args = arguments(__doc__, shard=WHOLE, **shape)
    shape = {name: getattr(args, name) for name in shape}
    grid = GRID if args.shard == WHOLE else IN_SHARDS
    worst: dict[str, float] = {}
    with join(None, args.device) as world:
        for dtype, (name, given) in product(("float32", "bfloat16"), grid.items()):
            found = row(flags(**{**shape, **given}, shard=args.shard), world, dtype)
            for what, ratio in found["formula_over_measured"].items():
                worst[what] = max(worst.get(what, 0.0), abs(ratio - 1))
            if world.is_main:
                way = {"way": name, "dtype": dtype, "shard": args.shard, "processes": world.size}
                report("scale", args.device, **way, **found)
        if world.is_main:
            report("scale", args.device, largest_error=worst)


if __name__ == "__main__":
    main()
