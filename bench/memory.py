"""Peak memory of a training step over weights and optimiser, against the plain mode; and how many sequences fit a 24 GB GPU.

    python bench/memory.py [--n_embd 768] [--dtype float32] [--batch_size 8] [--gpu_gib 22.0]

Each way runs in a process of its own, so that none finds another's memory. The estimate for the GPU counts what a step
under bfloat16 autocast keeps for its gradients, tensor by tensor, which does not depend on the device.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder, where a module would hide the standard library's tokenize

# ruff: noqa: E402
import multiprocessing
from argparse import Namespace
from typing import Any

import torch

from bench.common import arguments, autocast, flags, peak_growth, report, training_step

WAYS: dict[str, dict[str, Any]] = {
    "plain": {"attention": "reference"}, "fast": {}, "pass": {"activation_checkpointing": "pass"}, "block": {"activation_checkpointing": "block"}}


def shape(args: Namespace) -> dict[str, Any]:
    return {"n_embd": args.n_embd, "n_head": max(1, args.n_embd // 64), "n_layer": args.n_layer, "sequence_length": args.sequence_length}


def peak_mib(args: Namespace, way: str) -> float:
    """Growth while one step runs. A step on one short sequence beforehand makes the optimiser's state."""
    settings = flags(**shape(args), batch_size=args.batch_size, compile=bool(args.compile and way != "plain"), **WAYS[way])
    _, step = training_step(settings, args.device, args.dtype, plain=way == "plain")
    return peak_growth(step, args.device)


def kept_bytes(args: Namespace, way: str, batch_size: int) -> tuple[int, int]:
    """What a bfloat16 forward pass keeps for its gradients, and bytes of the weights."""
    settings = flags(**shape(args), batch_size=batch_size, **WAYS[way])
    model, _ = training_step(settings, "cpu", "bfloat16", plain=False)
    idx = torch.randint(0, settings.vocab_size, (batch_size, settings.sequence_length))
    weights, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, dict[int, int]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast("cpu", "bfloat16"):
        loss = model(idx, targets=idx)["loss"]
    assert loss.isfinite()
    return sum(seen.values()), sum(p.numel() for p in model.parameters()) * 4


def main() -> None:
    args = arguments(__doc__, n_embd=768, n_layer=6, batch_size=8, sequence_length=256, compile=0, gpu_gib=22.0)
    processes = multiprocessing.get_context("spawn")
    peaks = {}
    for way in WAYS:
        with processes.Pool(1) as pool:
            peaks[way] = pool.apply(peak_mib, (args, way))
    fits = {}
    for way in WAYS:
        (one, weights), (two, _) = kept_bytes(args, way, 1), kept_bytes(args, way, 2)
        room = args.gpu_gib * 2**30 - 4 * weights - (one - (two - one))  # weights, gradients and two moments; what does not grow
        fits[way] = int(room / (two - one))
    report("memory", args.device, dtype=args.dtype, **shape(args), batch_size=args.batch_size, peak_mib=peaks,
           ratio={way: peaks[way] / peaks["plain"] for way in WAYS}, gpu_gib=args.gpu_gib, estimated_micro_batch=fits)


if __name__ == "__main__":
    main()
