"""Output projection and cross-entropy in slices against the plain way: time and peak memory of forward and
backward.

    python bench/linear_cross_entropy.py [--tokens 1024] [--width 128] [--vocabulary 50304]

Both ways run in turn in the same process; times are medians. Prints one JSON line.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from bench.common import peak_growth
from files import json_text
from models.loss import linear_cross_entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("tokens", 1024), ("width", 128), ("vocabulary", 50304), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.width, requires_grad=True)
    weight = (torch.randn(args.vocabulary, args.width) * 0.02).requires_grad_()
    targets = torch.randint(0, args.vocabulary, (args.tokens,))

    def plain() -> None:
        F.cross_entropy(hidden @ weight.t(), targets).backward()

    def sliced() -> None:
        (linear_cross_entropy(hidden, weight, targets)[0] / args.tokens).backward()

    ways = {"plain": plain, "sliced": sliced}
    times: dict[str, list[float]] = {name: [] for name in ways}
    memory = {}
    for name, work in ways.items():
        work()
        hidden.grad = weight.grad = None
        memory[name] = peak_growth(work)
    for _ in range(args.rounds):
        for name, work in ways.items():
            hidden.grad = weight.grad = None
            begin = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - begin)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    print(
        json_text(
            {
                "bench": "linear_cross_entropy",
                "tokens": args.tokens,
                "width": args.width,
                "vocabulary": args.vocabulary,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "seconds": seconds,
                "time_ratio": seconds["sliced"] / seconds["plain"],
                "peak_mib": memory,
                "memory_ratio": memory["sliced"] / memory["plain"],
            }
        )
    )


if __name__ == "__main__":
    main()
