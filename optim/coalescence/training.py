"""The parts of a training of coalescence times, as the recipe puts them together."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch

from data.bins import dataset_folder
from data.genomes.store import GenomeMeta, GenomeSplits, open_genomes
from data.genomes.windows import GenomeSet, GenomeSource
from distributed.world import World
from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import settings_of
from optim.coalescence.held_out import HeldOutTimes
from optim.coalescence.objective import NextTime
from optim.progress import Parts
from optim.setup import autocast_dtype, seed_everything


def assemble(args: Namespace, world: World, folder: Path) -> Parts:
    """What flags ask for: their pairs, and their network with fresh weights. Seeds all generators.

    Raises UserError.
    """
    splits = world.on_all(lambda: open_genomes(dataset_folder(args.dataset, args.data_dir)))
    seed_everything(args.seed, world.rank)
    network = CoalescenceTransformer(settings_of(args, splits.meta.n_windows)).to(world.device)
    network.resumes_adapter = args.resume_adapter is not None
    source = GenomeSource(splits, args.data_seed, args.workers)
    pairs = GenomeSet(splits.test, args.workers)
    return Parts(
        NextTime(network),
        source,
        evaluations=[HeldOutTimes(args, world, network, pairs, folder, splits.identity())],
        items="windows",
        items_per_sample=splits.meta.n_windows,
        flops_per_item=network.flops_per_token(),
        describe=lambda schedule: describe(args, world, splits, network, folder, schedule),
    )


def describe(
    args: Namespace,
    world: World,
    splits: GenomeSplits,
    network: CoalescenceTransformer,
    folder: Path,
    schedule: str,
) -> list[str]:
    """First lines of a run. schedule: in words."""
    where = f"CPU, {torch.get_num_threads()} threads"
    if world.device.type == "cuda":
        where = torch.cuda.get_device_name(world.device)
    meta, samples = splits.meta, args.batch_size * args.acc_steps
    epochs = args.iterations * samples / len(splits.train)
    masked = ", some of each missing" if meta.masked else ""
    dtype = str(autocast_dtype(args.dtype, world.device)).removeprefix("torch.")
    return [
        f"experiment: {folder}",
        f"model: {args.model}, {network.describe()}",
        f"device: {world.size} x {where}, {dtype}",
        (
            f"data: {splits.folder}, {len(splits.train):,} pairs for training and {len(splits.test):,} held"
            f" out; {meta.n_windows} windows of {meta.window_size} bp, {meta.n_samples} samples{masked}"
        ),
        (
            f"effective batch: {samples} pairs ({args.batch_size} x {args.acc_steps // world.size} on each of"
            f" {world.size} processes); {epochs:.2f} epochs in {args.iterations} steps"
        ),
        schedule,
        *left_out(meta),
    ]


def left_out(meta: GenomeMeta) -> list[str]:
    """A warning where files could not be prepared."""
    if not meta.errors:
        return []
    path, reason = meta.errors[0]
    return [
        f"warning: the data lack {len(meta.errors):,} tree sequences that could not be prepared, the first of"
        f" which is {path}: {reason}"
    ]
