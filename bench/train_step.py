"""A whole training step against the plain mode: dense attention mask, eager, logits of the whole vocabulary
in float32.

    python bench/train_step.py [--n_embd 768] [--dtype bfloat16] [--compile 0] [--batch_size 8] [--rounds 7]

Utilisation: useful floating-point operations (causal attention only) a second over the rate of a matrix
product that takes turns with the steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import torch

from bench.common import alternate, arguments, flags, matmul, matmul_rate, report, training_step
from models.macs import training_flops_per_token


def main() -> None:
    args = arguments(
        __doc__,
        n_embd=768,
        n_head=0,
        n_layer=6,
        batch_size=8,
        sequence_length=256,
        compile=1,
        rounds=7,
        model="lncot",
    )
    shape = {
        "n_embd": args.n_embd,
        "n_head": args.n_head or max(1, args.n_embd // 64),
        "n_layer": args.n_layer,
        "model": args.model,
        "batch_size": args.batch_size,
        "sequence_length": args.sequence_length,
    }
    model, fast = training_step(
        flags(**shape, compile=bool(args.compile)), args.device, args.dtype, plain=False
    )
    _, plain = training_step(flags(**shape, attention="reference"), args.device, args.dtype, plain=True)
    times = alternate(
        {"plain": plain, "fast": fast, "matmul": matmul(args.device, args.dtype)}, args.rounds, args.device
    )
    compiled = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
    fast()
    flops = training_flops_per_token(model.settings) * args.batch_size * args.sequence_length
    rate = matmul_rate(times["matmul"])
    report(
        "train_step",
        args.device,
        dtype=args.dtype,
        **shape,
        compile=bool(args.compile),
        seconds=times,
        speedup=times["plain"] / times["fast"],
        tokens_per_second=args.batch_size * args.sequence_length / times["fast"],
        matmul_tflops=rate / 1e12,
        utilisation={name: flops / times[name] / rate for name in ("plain", "fast")},
        graphs=compiled,
        recompiled_in_steady_state=torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) - compiled,
    )


if __name__ == "__main__":
    main()
