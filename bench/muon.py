"""The step of Muon beside a micro-batch of the modern GPT, and its share of a step of 2^19 tokens.

    python bench/muon.py [--depth 2] [--batch_size 1] [--sequence_length 512] [--muon_dtype float32]

All in this process: no work is shared with others.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import torch

from bench.common import alternate, arguments, autocast, flags, report
from models import make_model_from_args
from optim.optimizers import make_optimizer
from recipes.horizon import BASE_BATCH


def main() -> None:
    args = arguments(
        __doc__, n_embd=768, depth=2, batch_size=1, sequence_length=512, muon_dtype="auto", rounds=3
    )
    settings = flags(
        model="base",
        block="modern",
        window_pattern="SSSL",
        n_embd=args.n_embd,
        n_head=args.n_embd // 128,
        n_layer=args.depth,
        sequence_length=args.sequence_length,
        opt="muon",
        muon_dtype=args.muon_dtype,
    )
    torch.manual_seed(0)
    model = make_model_from_args(settings).to(args.device)
    optimizer = make_optimizer(model, settings)
    shape = args.batch_size, args.sequence_length
    inputs, targets = (torch.randint(0, settings.vocab_size, shape, device=args.device) for _ in range(2))

    def micro_batch() -> None:
        with autocast(args.device, args.dtype):
            loss = model(inputs, targets=targets)["loss"]
        loss.backward()

    times = alternate({"micro_batch": micro_batch, "step": optimizer.step}, args.rounds, args.device)
    micro_batches = BASE_BATCH / inputs.numel()
    report(
        "muon",
        args.device,
        dtype=args.dtype,
        n_embd=args.n_embd,
        depth=args.depth,
        tokens=inputs.numel(),
        muon_dtype=args.muon_dtype,
        milliseconds={name: 1000 * seconds for name, seconds in times.items()},
        share=times["step"] / (times["step"] + micro_batches * times["micro_batch"]),
    )


if __name__ == "__main__":
    main()
