"""Share of a training step that is spent on its data: finding the samples, reading the windows, handing them
to the device.

    python bench/loader.py [--n_embd 128] [--batch_size 8] [--rounds 15]

A small model is the hard case: its steps are short.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import tempfile

import numpy as np
import torch

from bench.common import alternate, arguments, flags, report, training_step
from data import SampleOrder, TokenWindows


def main() -> None:
    args = arguments(
        __doc__, n_embd=128, n_layer=6, batch_size=8, sequence_length=256, rounds=15, tokens=100_000_000
    )
    settings = flags(
        n_embd=args.n_embd,
        n_head=max(1, args.n_embd // 64),
        n_layer=args.n_layer,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
    )
    _, step = training_step(settings, args.device, args.dtype, plain=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(0).integers(0, settings.vocab_size, args.tokens, dtype=np.uint16).tofile(path)
        windows = TokenWindows(np.memmap(path, dtype=np.uint16, mode="r"), args.sequence_length)
        order, first = SampleOrder(windows.n_windows, 0), 0

        def load() -> None:
            nonlocal first
            windows.batch(order.windows(first, args.batch_size)).to(torch.device(args.device))
            first += args.batch_size

        times = alternate({"step": step, "load": load}, args.rounds, args.device)
    report(
        "loader",
        args.device,
        n_embd=args.n_embd,
        batch_size=args.batch_size,
        seconds=times,
        share=times["load"] / (times["load"] + times["step"]),
    )


if __name__ == "__main__":
    main()
