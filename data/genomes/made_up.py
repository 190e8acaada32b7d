"""A prepared set of pairs that are drawn at random instead of simulated, for self-tests: the more sites two
haplotypes differ at in a window, the older is their ancestor there.

    make_up(folder, Layout(2000, 100_000, 10, SCALES, masked=False), {"train": 64, "test": 16}, seed=0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from data.genomes.preprocess import write_index
from data.genomes.store import FORMAT, KIND, LEVEL, META, Layout, shard_name
from files import write_atomically, write_json

SCENARIO = "made_up"
MISSING = 0.27  # share of a window, on average
SITES_PER_GENERATION = 1e-4  # of a window


def _example(draw: np.random.Generator, layout: Layout) -> bytes:
    """One pair, as Layout.encode has it."""
    windows, samples = layout.n_windows, layout.n_samples
    log_times = np.clip(9 + 0.5 * draw.standard_normal(windows).cumsum(), 6, 13)
    differing = draw.poisson(SITES_PER_GENERATION * np.exp(log_times))
    counts = np.zeros((2, windows, samples), dtype=np.uint16)
    counts[0, :, 1:] = draw.poisson(differing[:, None] / samples, (windows, samples - 1))
    counts[1, :, 1:] = draw.poisson(1.0, (windows, samples - 1))
    counts[:, :, 0] = counts[::-1, :, 1:].sum(-1)  # the sites of the other channel
    missing: NDArray[Any] | None = None
    if layout.masked:
        missing = draw.binomial(layout.window_size, MISSING, windows)
    return layout.encode(counts, log_times.astype(np.float16), missing)


def make_up(folder: Path, layout: Layout, pairs: Mapping[str, int], seed: int) -> None:
    """Write a set with so many pairs in each split, the same for the same seed."""
    draw, splits = np.random.default_rng(seed), {}
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    for split, count in pairs.items():
        packed = [compressor.compress(_example(draw, layout)) for _ in range(count)]
        content = b"".join(packed)
        (folder / split).mkdir(parents=True)
        write_atomically(folder / split / shard_name(0), content)
        result = {
            "files": [{"path": SCENARIO, "scenario": SCENARIO, "split": split}],
            "pairs": [[0, 1]] * count,
            "sizes": [len(each) for each in packed],
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        splits[split] = write_index(folder / split, [result])
    described = {"kind": KIND, "format": FORMAT, **asdict(layout), "splits": splits}
    empty: dict[str, Any] = {"settings": {}, "duplicates": [], "errors": []}
    write_json(folder / META, {**described, "scenarios": {SCENARIO: dict.fromkeys(pairs, 1)}, **empty})
