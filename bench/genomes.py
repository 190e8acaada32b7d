"""Milliseconds to make an example of the recipe coalescence, the share of a training step that is spent on
reading examples, and how simulation and preprocessing gain from a second process.

    python bench/genomes.py [--pairs 200] [--rounds 5] [--batch_size 32] [--simulations 256] [--files 128]

An example is a pair of haplotypes among 50 samples of 1 Mb. `features` makes them as float16, `stored` makes
features and targets and compresses both, as preprocessing does. The training step is that of the preset
`tiny`, as short steps are the hard case. All this is time of a processor, so that a shared machine does not
matter; the two processes are timed by the clock, and need a core each.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import msprime
import torch
import zstandard

from bench.common import alternate, arguments, report, seconds
from data.genomes.features import SCALES, pair_features, sites_of
from data.genomes.inputs import choose_pairs
from data.genomes.made_up import make_up
from data.genomes.shards import encoded
from data.genomes.store import LEVEL, Layout, open_genomes
from data.genomes.targets import log_mean_times
from data.genomes.windows import GenomeSource
from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import PRESETS
from optim.coalescence.objective import NextTime

WHOLE = Layout(2000, 1_000_000, 50, SCALES, masked=False)
SMALL = Layout(2000, 100_000, 10, SCALES, masked=False)


def processor_seconds(work: Callable[[], object], rounds: int) -> float:
    """Median of some rounds."""
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def making(n_pairs: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a processor for each pair."""
    trees = msprime.sim_ancestry(
        WHOLE.n_samples // 2,
        sequence_length=WHOLE.sequence_length,
        population_size=2e4,
        recombination_rate=1.28e-8,
        random_seed=1,
    )
    trees = msprime.mutate(trees, rate=1.29e-8, random_seed=1)
    pairs, compressor = choose_pairs(WHOLE.n_samples, n_pairs, 1), zstandard.ZstdCompressor(level=LEVEL)
    sizes = WHOLE.window_size, WHOLE.sequence_length
    ways: dict[str, Callable[[], object]] = {
        "features": lambda: pair_features(*sites_of(trees), pairs, *sizes),
        "targets": lambda: log_mean_times(trees, pairs, *sizes),
        "stored": lambda: [compressor.compress(raw) for raw in encoded(trees, pairs, WHOLE, None)],
    }
    return {name: 1000 * processor_seconds(work, rounds) / n_pairs for name, work in ways.items()}


def reading(batch_size: int, rounds: int, device: str) -> dict[str, float]:
    """Seconds of a step, and of reading its batch: of the processor, where that does both."""
    torch.manual_seed(0)
    objective = NextTime(CoalescenceTransformer(PRESETS["tiny"].settings(SMALL.n_windows))).to(device)
    optimizer = torch.optim.AdamW(objective.parameters())
    with tempfile.TemporaryDirectory() as name:
        make_up(Path(name) / "set", SMALL, {"train": 2048, "test": 8}, seed=0)
        source = GenomeSource(open_genomes(Path(name) / "set"), data_seed=0)
        batch = source.samples(0, 0, batch_size).to(torch.device(device))
        first = 0

        def load() -> None:
            nonlocal first
            first += batch_size
            source.samples(0, first, batch_size).to(torch.device(device))

        def step() -> None:
            objective(batch).mean.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        ways: dict[str, Callable[[], object]] = {"step": step, "load": load}
        if device == "cpu":
            return {name: processor_seconds(work, rounds) for name, work in ways.items()}
        return alternate(ways, rounds, device)


def gain(words: list[str], count: str, rounds: int) -> float:
    """Seconds of a program with one process, divided by those with two. Each run writes a new folder.

    words: FOLDER stands for it. count: the flag for the number of processes.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, found in times.items():
            with tempfile.TemporaryDirectory() as name:
                filled = [word.replace("FOLDER", name) for word in words]
                command = [sys.executable, "-m", *filled, count, str(processes)]

                def run(command: list[str] = command) -> Any:
                    return subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

                found.append(seconds(run, "cpu"))
    return statistics.median(times[1]) / statistics.median(times[2])


def scaling(simulations: int, files: int, rounds: int) -> dict[str, float]:
    """How many times as fast two processes are as one."""
    simulate = ["data.genomes.simulate", "--scenario", "constant", "--data_dir"]
    with tempfile.TemporaryDirectory() as base:
        command = [sys.executable, "-m", *simulate, base, "--num_samples", str(files)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        prepare = ["data.genomes.preprocess", "--base_dir", base, "--out_subdir", "FOLDER"]
        return {
            "simulate": gain(
                [*simulate, "FOLDER", "--num_samples", str(simulations)], "--num_processes", rounds
            ),
            "preprocess": gain(prepare, "--num_workers", rounds),
        }


def main() -> None:
    args = arguments(
        __doc__, pairs=200, rounds=5, batch_size=32, simulations=256, files=128, scaling_rounds=1
    )
    times = reading(args.batch_size, args.rounds * 20, args.device)
    report(
        "genomes",
        args.device,
        milliseconds_of_a_pair=making(args.pairs, args.rounds),
        seconds=times,
        share=times["load"] / (times["load"] + times["step"]),
        two_processes=scaling(args.simulations, args.files, args.scaling_rounds) if args.files else None,
    )


if __name__ == "__main__":
    main()
