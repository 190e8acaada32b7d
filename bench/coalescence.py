"""Decoding of coalescence times with kept keys and values against running all positions for each token.

    python bench/coalescence.py [--model tiny] [--sequences 4] [--replicates 15] [--device cpu]

The plain way is timed at eight lengths of what is drawn, spread evenly, each for all rows at once; features
and weights are random.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import torch

from bench.common import arguments, report, seconds
from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import CHANNELS, PRESETS, SCALES
from optim.coalescence.decoding import decode, uniforms_of

LENGTHS = 8


def main() -> None:
    args = arguments(__doc__, model="tiny", sequences=4, replicates=15)
    torch.manual_seed(0)
    settings = PRESETS[args.model].settings()
    windows, rows = settings.n_windows, args.sequences * args.replicates
    network = CoalescenceTransformer(settings).to(args.device).eval()
    x = torch.rand(args.sequences, CHANNELS, SCALES, windows, settings.n_samples, device=args.device)
    uniforms = uniforms_of(range(rows), windows, 0).view(args.sequences, args.replicates, windows)
    repeated = x.repeat_interleave(args.replicates, dim=0)

    @torch.inference_mode()
    def whole(length: int) -> None:
        tokens = torch.ones(rows, length, dtype=torch.int64, device=args.device)
        network.logits(network.run(repeated, tokens).states[:, -1])

    whole(windows)
    decode(network, x[:1], uniforms[:1, :1], 50)
    kept = seconds(lambda: decode(network, x, uniforms, 50), args.device)
    stretch, plain = windows / LENGTHS, 0.0
    for number in range(LENGTHS):
        length = max(1, round(stretch * (number + 0.5)))
        plain += stretch * seconds(lambda: whole(length), args.device)  # noqa: B023
    report(
        "coalescence",
        args.device,
        model=args.model,
        rows=rows,
        windows=windows,
        seconds={"plain": plain, "kept": kept},
        tokens_per_second={"plain": rows * windows / plain, "kept": rows * windows / kept},
        speedup=plain / kept,
    )


if __name__ == "__main__":
    main()
