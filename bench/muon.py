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
from bench.common import alternate, arguments, flags_of_gpt, micro_batch, report
from optim.optimizers import make_optimizer
from recipes.horizon import BASE_BATCH


def main() -> None:
    args = arguments(
        __doc__, n_embd=768, depth=2, batch_size=1, sequence_length=512, muon_dtype="auto", rounds=3
    )
    settings = flags_of_gpt(
        n_embd=args.n_embd,
        n_head=args.n_embd // 128,
        n_layer=args.depth,
        sequence_length=args.sequence_length,
        batch_size=args.batch_size,
        muon_dtype=args.muon_dtype,
    )
    model, forward_and_backward = micro_batch(settings, args.device, args.dtype, plain=False)
    optimizer = make_optimizer(model, settings)
    tokens = args.batch_size * args.sequence_length
    times = alternate({"micro_batch": forward_and_backward, "step": optimizer.step}, args.rounds, args.device)
    micro_batches = BASE_BATCH / tokens
    report(
        "muon",
        args.device,
        dtype=args.dtype,
        n_embd=args.n_embd,
        depth=args.depth,
        tokens=tokens,
        muon_dtype=args.muon_dtype,
        milliseconds={name: 1000 * seconds for name, seconds in times.items()},
        share=times["step"] / (times["step"] + micro_batches * times["micro_batch"]),
    )


if __name__ == "__main__":
    main()
