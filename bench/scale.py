"""Memory of a training by formula (models/footprint.py) beside what is measured, over a grid of models.

    python bench/scale.py [--n_embd 128] [--n_head 4] [--batch_size 4] [--sequence_length 256]
        [--vocab_size 512]

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
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.common import arguments, autocast, flags, report
from models import make_model_from_args
from models.footprint import Training, footprint
from models.settings import ModelSettings
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


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made within, while they live. known: tensors that were there."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.seen:
                self.seen.add(key)
                self.now += size
                weakref.finalize(storage, self._end, key, size)
        self.peak = max(self.peak, self.now)
        return out

    def _end(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


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
    return sum(tensor.nbytes for tensor in tensors)


def states_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Without counts of steps."""
    for state in optimizer.state.values():
        yield from (value for key, value in state.items() if isinstance(value, Tensor) and key != "step")


def measured(args: Namespace, device: str, dtype: str) -> dict[str, int]:
    """Bytes of the second step of a training, whose optimiser has its state from the first."""
    torch.manual_seed(0)
    model = make_model_from_args(args).to(device)
    optimizer = make_optimizer(model, args)
    idx = torch.randint(0, args.vocab_size, (args.batch_size, args.sequence_length), device=device)

    def forward() -> Tensor:
        with autocast(device, dtype):
            loss: Tensor = model(idx, targets=idx)["loss"]
        return loss

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    forward().backward()
    update()
    weights, states = bytes_of(model.parameters()), bytes_of(states_of(optimizer))
    there = chain(model.parameters(), model.buffers(), states_of(optimizer), [idx])
    steps = (state["step"] for state in optimizer.state.values() if "step" in state)
    live: Any = LiveBytes(chain(there, steps)) if device == "cpu" else AllocatedBytes()
    with live:
        loss = forward()
        kept = live.now
        loss.backward()
        del loss
        gradients = live.now
        update()
    return {
        "weights": weights,
        "gradients": gradients,
        "states": states,
        "kept": kept,
        "peak": live.peak + weights + states,
    }


def row(args: Namespace, device: str, dtype: str) -> dict[str, Any]:
    """Measured bytes, and the formula's over them."""
    shares = args.training_length_factor
    how = Training(
        args.batch_size,
        dtype,
        args.opt,
        shares=None if shares is None else tuple(shares),
        cuda=device != "cpu",
    )
    memory, found = footprint(ModelSettings.from_args(args), how), measured(args, device, dtype)
    ratio = {name: getattr(memory, name) / size for name, size in found.items()}
    return {"measured": found, "formula_over_measured": ratio, "phase": memory.largest_phase}


def main() -> None:
    shape = {"n_embd": 128, "n_head": 4, "batch_size": 4, "sequence_length": 256, "vocab_size": 512}
    args = arguments(__doc__, **shape)
    shape = {name: getattr(args, name) for name in shape}
    worst: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        for name, given in GRID.items():
            found = row(flags(**{**shape, **given}), args.device, dtype)
            report("scale", args.device, way=name, dtype=dtype, **found)
            for what, ratio in found["formula_over_measured"].items():
                worst[what] = max(worst.get(what, 0.0), abs(ratio - 1))
    report("scale", args.device, largest_error=worst)


if __name__ == "__main__":
    main()
