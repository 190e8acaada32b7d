"""Speed and memory of a training by main.py, against another revision of the repository.

    git worktree add /tmp/before REVISION
    python -m bench.against /tmp/before --pairs 10

Both train the same model from nothing in turn, as processes of their own; which of the two goes first changes
from pair to pair. A pair's ratio is of the medians of their seconds per step, here over there; the interval
is that of the median ratio, by order statistics. Prints one line of JSON for each model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent.parent
MODELS = ("base", "lncot", "adm", "pondernet")
SKIPPED = 3  # first rows, in which memory is still being taken


def make_data(folder: Path) -> None:
    """Random tokens; the validation split is short, as all of it is evaluated at the end."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for split, count in (("train", 500_000), ("val", 1_000)):
        draw.integers(0, 50257, count).astype("<u2").tofile(folder / f"{split}.bin")


def train(root: Path, model: str, args: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a step, and the peak of memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["main.py", "--model", model, "--results_base_folder", folder, "--exp_name", "run"]
        make_data(Path(folder) / "random")
        words += ["--dataset", "random", "--data_dir", folder, "--n_layer", "5"]
        if model != "base":
            words += ["--n_layer_begin", "1", "--n_layer_end", "1", "--n_repeat", "3"]
        words += ["--n_embd", str(args.n_embd), "--n_head", "4", "--sequence_length", "128"]
        words += ["--batch_size", "4", "--acc_steps", "2", "--iterations", str(args.steps), "--log_freq", "1"]
        words += ["--eval_freq", "0", "--eval_batches", "1", "--device", "cpu"]
        subprocess.run([sys.executable, *words], cwd=root, check=True, stdout=subprocess.DEVNULL)
        lines = next(Path(folder).glob("*/*/run/metrics.jsonl")).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    times = [row["time"] for row in rows if row["kind"] == "train"][SKIPPED:]
    seconds = statistics.median(time["seconds_per_step"] for time in times)
    return seconds, max(time["peak_memory_mib"] for time in times)


def interval(ratios: list[float]) -> tuple[float, float]:
    """About 95% for a median: the second and the last but one of ten (97.9%), the third of 12 to 14."""
    ordered = sorted(ratios)
    depth = 1 if len(ordered) < 12 else 2
    return ordered[depth], ordered[-1 - depth]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("against", type=Path, help="a working tree of the other revision")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--n_embd", type=int, default=128)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    args = parser.parse_args()
    for model in args.models:
        ratios, memory = [], []
        for pair in range(args.pairs):
            roots = [HERE, args.against] if pair % 2 else [args.against, HERE]
            found: dict[Path, Any] = {root: train(root, model, args) for root in roots}
            ratios.append(found[HERE][0] / found[args.against][0])
            memory.append(found[HERE][1] / found[args.against][1])
        low, high = interval(ratios)
        result = {"model": model, "pairs": args.pairs, "seconds": round(statistics.median(ratios), 4)}
        result |= {"low": round(low, 4), "high": round(high, 4)}
        result["memory"] = round(statistics.median(memory), 4)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
