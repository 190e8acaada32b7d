"""Show a prepared set of genomes: counts, checksums, and an example as a picture, for data.inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.genomes.store import (
    FILES,
    META,
    SPLITS,
    Example,
    GenomeMeta,
    GenomeSplits,
    open_genomes,
    shard_name,
    split_sha256,
)
from drawing import load_matplotlib
from errors import UserError
from files import replace_atomically, sha256_of

CHANNELS = ("differs", "agrees")
TIME, MISSING = "#D55E00", "#999999"
SHOWN = 5


def problems_of(genomes: GenomeSplits) -> list[str]:
    """What is wrong with the files, by the checksums of meta.json."""
    wrong = []
    for split in (genomes.train, genomes.test):
        stated = genomes.meta.splits[split.folder.name]
        for number, sha256 in enumerate(stated["shard_sha256"]):
            path = split.folder / shard_name(number)
            try:
                is_right = sha256_of(path) == sha256
            except OSError as error:
                wrong.append(f"{path}: {error.strerror}")
                continue
            if not is_right:
                wrong.append(f"{path} has another SHA-256 than {META} says")
        text = (split.folder / FILES).read_text()
        if split_sha256(split.index, text, stated["shard_sha256"]) != stated["sha256"]:
            wrong.append(f"the index of {split.folder} has another SHA-256 than {META} says")
    return wrong


def show(folder: Path) -> int:
    """Print everything; 0 where the files are right, 1 where they are not. Raises UserError."""
    genomes = open_genomes(folder, check=False)
    for line in described(folder, genomes.meta):
        print(line)
    wrong = problems_of(genomes)
    print(f"checksums  {'WRONG' if wrong else 'right'}")
    for line in wrong:
        print(f"           {line}")
    return 1 if wrong else 0


def described(folder: Path, meta: GenomeMeta) -> list[str]:
    """Lines about what the set holds."""
    masked = "bin 0 says how much is missing" if meta.masked else "no mask"
    scales = ", ".join(f"{scale * meta.window_size:,}" for scale in meta.multipliers)
    lines = [
        f"folder     {folder}",
        f"genomes    {meta.sequence_length:,} bp of {meta.n_samples} samples, {masked}",
        f"windows    {meta.n_windows} of {meta.window_size:,} bp; features over {scales} bp",
    ]
    for split in SPLITS:
        stated = meta.splits[split]
        lines.append(
            f"{split:<10} {stated['examples']:,} pairs of {stated['files']:,} files in {stated['shards']}"
            " shards"
        )
    for name, counts in meta.scenarios.items():
        lines.append(
            f"           {name}: {counts['train']:,} files for training, {counts['test']:,} for test"
        )
    for kept, other in meta.duplicates[:SHOWN]:
        lines.append(f"once       {other}, whose content is that of {kept}")
    for path, reason in meta.errors[:SHOWN]:
        lines.append(f"left out   {path}: {reason}")
    for name, found in {"once": meta.duplicates, "left out": meta.errors}.items():
        if len(found) > SHOWN:
            lines.append(f"{name:<10} {len(found) - SHOWN:,} more files, which {META} names")
    return lines


def draw(folder: Path, split: str, number: int, path: Path) -> None:
    """An example as a picture. Raises UserError where there is no such example."""
    genomes = open_genomes(folder)
    examples = genomes.train if split == "train" else genomes.test
    if not 0 <= number < len(examples):
        raise UserError(f"--draw {number}: {examples.folder} has examples 0 to {len(examples) - 1}")
    figure = picture(examples.example(number), genomes.meta, f"{folder.name}/{split}, example {number}")
    ending = path.suffix[1:] or "png"
    replace_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format=ending))
    print(f"--- picture of example {number}: {path}")


def picture(example: Example, meta: GenomeMeta, name: str) -> Any:
    """Features from bin 1 on of both channels and all scales, above the true TMRCA, along the genome."""
    load_matplotlib()
    from matplotlib import pyplot, ticker

    rows = 2 * len(meta.multipliers)
    figure, axes = pyplot.subplots(
        rows + 1,
        figsize=(8, 1.0 * rows + 2.6),
        sharex=True,
        layout="constrained",
        height_ratios=[1.0] * rows + [2.2],
    )
    edges = np.minimum(np.arange(meta.n_windows + 1) * meta.window_size, meta.sequence_length) / 1000
    x = np.log1p(example.x.astype(np.float32))[..., 1:]
    for row, (axis, values) in enumerate(zip(axes, x.reshape(rows, *x.shape[2:]), strict=False)):
        channel, scale = divmod(row, len(meta.multipliers))
        bounds = np.arange(1, meta.n_samples + 1) - 0.5
        mesh = axis.pcolormesh(edges, bounds, values.T, vmin=0, vmax=x.max(), cmap="cividis")
        span = meta.multipliers[scale] * meta.window_size / 1000
        axis.set_ylabel(f"{span:g} kb", rotation=0, ha="right", va="center")
        axis.yaxis.set_major_locator(ticker.MaxNLocator(nbins=3, integer=True))
        if scale == 0:
            title = f"sites where the pair {CHANNELS[channel]}, by their number of carriers, in windows of"
            axis.set_title(title, loc="left", fontsize=10)
    figure.colorbar(mesh, ax=axes[:rows], label="ln(1 + sites)", shrink=0.6)
    times = np.exp(example.y.astype(np.float64))
    axes[rows].stairs(times, edges, baseline=None, color=TIME)
    title = f"true TMRCA of the pair, mean of each window of {meta.window_size / 1000:g} kb"
    if example.missing is not None:
        span = meta.multipliers[0] * meta.window_size / 1000
        title += f"; grey: share missing in {span:g} kb"
        shade = axes[rows].twinx()
        shade.stairs(example.missing[0], edges, fill=True, color=MISSING, alpha=0.4)
        shade.set(ylim=(0, 1), ylabel="share missing")
    axes[rows].set_title(title, loc="left", fontsize=10)
    axes[rows].set(yscale="log", xlabel="position (kb)", ylabel="generations", xlim=(0, edges[-1]))
    axes[rows].set_ylim(times.min() / 1.5, times.max() * 1.5)
    figure.suptitle(f"{name}: {example.file}, samples {example.pair[0]} and {example.pair[1]}", fontsize=11)
    return figure
