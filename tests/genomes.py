"""Small tree sequences, sets that are prepared of them, and an experiment with a network that reads these."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msprime
import numpy as np
import torch
import tskit

from data.genomes.preprocess import main
from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import CoalescenceSettings
from tests.command_lines import code_of

COUNTS = {"constant": 6, "high": 3}
LENGTH = 20_000
FLAGS = {
    "window_size": 1000,
    "sequence_length": LENGTH,
    "num_pairs": 6,
    "simplify_first_n_samples": 6,
    "num_workers": 1,
}
WINDOWS = LENGTH // FLAGS["window_size"]


def simulate(
    seed: int, individuals: int = 3, length: float = LENGTH, rate: float = 1e-7
) -> tskit.TreeSequence:
    """Diploids of a population of 10,000; infinite sites."""
    trees = msprime.sim_ancestry(
        individuals,
        sequence_length=length,
        population_size=1e4,
        recombination_rate=1e-8,
        random_seed=seed,
    )
    return msprime.mutate(trees, rate=rate, random_seed=seed)


def write(folder: Path, counts: dict[str, int], first: int = 1) -> Path:
    """So many tree sequences in a folder for each scenario."""
    seed = first
    for scenario, count in counts.items():
        (folder / scenario).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            simulate(seed).dump(folder / scenario / f"ts_{number:08d}.trees")
            seed += 1
    return folder


def words(base: Path, **changes: Any) -> list[str]:
    """Arguments of data.genomes.preprocess; a list is several words, True a flag without a value."""
    given = []
    for name, value in {**FLAGS, **changes}.items():
        values = value if isinstance(value, list) else [value]
        given += [f"--{name}"] if value is True else [f"--{name}", *map(str, values)]
    return ["--base_dir", str(base), *given]


def prepare(base: Path, **changes: Any) -> int:
    """The exit code of data.genomes.preprocess in this process."""
    return code_of(main, words(base, **changes))


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_mask(path: Path, size: int, seed: int = 0, key: str = "access_2L") -> Path:
    """About half of it accessible."""
    mask = np.repeat(np.random.default_rng(seed).random(size // 100 + 1) < 0.5, 100)[:size]
    np.savez(path, **{key: mask})
    return path


def make_sets(base: Path) -> Path:
    """Tree sequences of COUNTS, with the sets `processed` and `masked`."""
    write(base, COUNTS)
    assert prepare(base) == 0
    assert prepare(base, out_subdir="masked", bitmask=write_mask(base / "mask.npz", 50_000)) == 0
    return base


def network(mask_singletons: bool = True, windows: int = WINDOWS, seed: int = 1) -> CoalescenceTransformer:
    """One layer that reads these sets, or another number of windows."""
    torch.manual_seed(seed)
    samples = FLAGS["simplify_first_n_samples"]
    return CoalescenceTransformer(CoalescenceSettings(samples, windows, 1, 2, mask_singletons)).eval()


def saved(folder: Path, dataset: Path, seed: int = 1) -> Path:
    """An experiment's folder with a checkpoint."""
    folder.mkdir(parents=True)
    state = {
        "model": network(seed=seed).state_dict(),
        "args": {"recipe": "coalescence", "model": "tiny", "dataset": str(dataset), "data_dir": None},
        "settings": {"n_head": 2},
        "genomes": {"sequence_length": LENGTH, "window_size": FLAGS["window_size"]},
        "itr": 3,
    }
    torch.save(state, folder / "ckpt.pt")
    return folder
