"""Tree sequences to examples of the recipe coalescence: site counts of haplotype pairs, and their coalescence
times.

    python -m data.genomes.preprocess --base_dir data/datasets/genomes/base --out_subdir processed
    python -m data.genomes.preprocess --base_dir genomes/high_ne --out_subdir /data/processed_small_window \\
        --window_size 200 --sequence_length 1e5 --bitmask access.npz

Every .trees, .ts, .tsk and .tskit file below --base_dir is read, in order of its path; which of them are for
training is decided for each folder by itself. A worker makes one shard at a time. What is there and right is
kept: after a kill, the same command resumes, and neither kills nor the number of workers change the result.
meta.json is written last, so a folder that has it is complete.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from config.programs import guarded
from data.genomes.features import SCALES
from data.genomes.inputs import (
    SUFFIXES,
    Input,
    content_of,
    find_trees,
    inputs_of,
    load_mask,
    without_copies,
)
from data.genomes.pool import results_of, time_left
from data.genomes.preprocess_flags import parse
from data.genomes.shards import Job, Made, Mask, make_shard, remove_leftovers
from data.genomes.store import (
    ENTRY,
    FILES,
    FORMAT,
    INDEX,
    KIND,
    LARGEST,
    META,
    SPLITS,
    Layout,
    is_genomes,
    read_meta,
    split_sha256,
)
from data.streams import printable
from errors import UserError
from files import (
    TRANSIENT_ERRORS,
    json_text,
    load_json,
    locked,
    save_array,
    sha256_of,
    write_atomically,
    write_json,
)

SHARD_FILES = 16  # tree sequences of a shard, where that makes no more than
MOST_SHARDS = 400  # of a split: a training holds one file open for each
LINE_SECONDS = 5.0
SHOWN, SHOWN_ERRORS = 5, 20
Say = Callable[[str], None]


def mask_of(args: Namespace) -> Mask | None:
    """Raises UserError for a file that is none, or too short."""
    if args.bitmask is None:
        return None
    size = load_mask(args.bitmask, args.mask_key).size
    if size < args.sequence_length:
        raise UserError(
            f"--bitmask {args.bitmask} has {size:,} bp, fewer than --sequence_length {args.sequence_length:,}"
        )
    return Mask(str(args.bitmask), args.mask_key, sha256_of(args.bitmask))


def samples_of_first(base: Path, paths: Sequence[str]) -> int:
    """Samples of the first file that can be read. Raises UserError where there is none."""
    import tskit

    for path in paths:
        try:
            return int(tskit.load(base / path).num_samples)
        except (OSError, EOFError, KeyError, tskit.FileFormatError, tskit.LibraryError):
            continue
    raise UserError(f"--base_dir {base}: none of its {len(paths):,} files is a tree sequence")


def layout_of(args: Namespace, paths: Sequence[str]) -> Layout:
    """Raises UserError for pairs that no file has, and examples beyond measure."""
    n_samples = args.simplify_first_n_samples or samples_of_first(args.base_dir, paths)
    possible = n_samples * (n_samples - 1) // 2
    if args.num_pairs > possible:
        raise UserError(f"--num_pairs {args.num_pairs:,}: {n_samples} samples have {possible:,} pairs")
    layout = Layout(args.window_size, args.sequence_length, n_samples, SCALES, args.bitmask is not None)
    if math.prod(layout.shape) > LARGEST:
        raise UserError(
            f"--window_size {args.window_size:,}: an example would have {layout.n_windows:,} windows of"
            f" {n_samples:,} samples, too many to be stored"
        )
    return layout


def make_room(folder: Path, settings: dict[str, Any], skip_existing: bool) -> None:
    """Remove the meta.json of a set that is made again. Raises UserError where a folder holds a whole set
    that is made of something else, or no set.
    """
    if not (folder / META).exists():
        return
    if not is_genomes(folder):
        raise UserError(f"{folder} holds other data: give another --out_subdir")
    try:
        there = read_meta(folder) if skip_existing else None
    except UserError:  # damaged
        there = None
    if there is None or there.errors:
        (folder / META).unlink()
        return
    for name, value in settings.items():
        if there.settings.get(name) != value:
            what = "other files" if name == "inputs" else f"{name} {there.settings.get(name)}, not {value}"
            raise UserError(
                f"{folder} holds a set that was made with {what}: give another --out_subdir, or"
                " --no-skip-existing, which makes it again"
            )


class Progress:
    """A line every few seconds: shards, pairs a second, and the time left."""

    def __init__(self, jobs: Sequence[Job], say: Say) -> None:
        self.total, self.say = len(jobs), say
        self.began = self.said = time.monotonic()
        self.shards = self.kept = self.pairs = 0

    def add(self, made: Made) -> None:
        self.shards += 1
        self.kept += int(made.was_there)
        if not made.was_there:
            self.pairs += made.examples
        now = time.monotonic()
        if now - self.said >= LINE_SECONDS:
            self.said = now
            seconds = now - self.began
            left = time_left(seconds, self.shards, self.total)
            self.say(
                f"{self.shards:,} of {self.total:,} shards  {self.pairs / seconds:,.0f} pairs/s  {left} left"
            )


def make_all(jobs: Sequence[Job], workers: int, progress: Progress) -> list[Made]:
    """What became of the shards, in order. Raises UserError where a worker was killed."""
    found = {}
    with closing(results_of(make_shard, jobs, workers, "--num_workers")) as results:
        for job, made in results:
            found[job.path] = made
            progress.add(made)
    return [found[job.path] for job in jobs]


def jobs_of(
    inputs: Sequence[Input], args: Namespace, folder: Path, layout: Layout, mask: Mask | None
) -> list[Job]:
    """The shards of both splits."""
    jobs = []
    for split in SPLITS:
        mine = [each for each in inputs if each.split == split]
        size = max(SHARD_FILES, -(-len(mine) // MOST_SHARDS))
        for number, first in enumerate(range(0, len(mine), size)):
            part = tuple(mine[first : first + size])
            place = folder / split
            jobs.append(
                Job(args.base_dir, place, number, part, layout, args.num_pairs, mask, args.skip_existing)
            )
    return jobs


def write_index(folder: Path, descriptions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write the index of a split and the list of its files; returns what meta.json says of the split.

    descriptions: of its shards, as `make_shard` has them.
    """
    files: list[dict[str, Any]] = []
    entries, shards = [], []
    for shard, result in enumerate(descriptions):
        sizes = np.array(result["sizes"], dtype=np.int64)
        part = np.zeros(sizes.size, dtype=ENTRY)
        part["shard"], part["size"], part["offset"] = shard, sizes, np.cumsum(sizes) - sizes
        of_a_file = sizes.size // max(len(result["files"]), 1)
        part["file"] = len(files) + np.arange(sizes.size) // max(of_a_file, 1)
        part["first"], part["second"] = np.array(result["pairs"], dtype=np.int32).reshape(-1, 2).T
        entries.append(part)
        files += result["files"]
        shards.append(result["sha256"])
    index = np.concatenate([np.zeros(0, dtype=ENTRY), *entries])
    save_array(folder / INDEX, index)
    text = json_text(files) + "\n"
    write_atomically(folder / FILES, text)
    return {
        "files": len(files),
        "examples": index.size,
        "shards": len(shards),
        "sha256": split_sha256(index, text, shards),
        "shard_sha256": shards,
    }


def scenarios_of(folder: Path) -> dict[str, dict[str, int]]:
    """How many files each scenario has in each split."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        for file in load_json(folder / split / FILES):
            counts.setdefault(file["scenario"], dict.fromkeys(SPLITS, 0))[split] += 1
    return dict(sorted(counts.items()))


def named_copies(copies: Sequence[list[str]]) -> list[str]:
    """Lines about files that are there under several names."""
    lines = []
    for first, name in copies[:SHOWN]:
        lines.append(f"counted once: {printable(name)}, whose content is that of {printable(first)}")
    if len(copies) > SHOWN:
        lines.append(f"counted once: {len(copies) - SHOWN:,} more files ({META} names all)")
    return lines


def hashed(base: Path, paths: Sequence[str], workers: int) -> dict[str, str]:
    """SHA-256 of each file, in order."""
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(paths, pool.map(lambda path: content_of(base / path), paths), strict=True))


def preprocess(args: Namespace, say: Say) -> None:
    """Prepare a set. Raises UserError, at the end also where a file could not be read."""
    began = time.monotonic()
    import_module("tskit")  # here, as the workers report a missing one late
    if not args.base_dir.is_dir():
        raise UserError(f"--base_dir {args.base_dir}: no such folder")
    mask = mask_of(args)
    paths, found = find_trees(args.base_dir, args.include)
    for line in found.lines():
        say(line)
    if not paths:
        raise UserError(f"--base_dir {args.base_dir}: no tree sequences ({', '.join(SUFFIXES)}) to read")
    hashes, copies = without_copies(hashed(args.base_dir, paths, args.num_workers))
    for line in named_copies(copies):
        say(line)
    layout = layout_of(args, list(hashes))
    inputs = inputs_of(hashes, args.base_dir, args.train_ratio, args.global_seed)
    settings = {
        **asdict(layout),
        "multipliers": list(layout.multipliers),
        **{name: getattr(args, name) for name in ("num_pairs", "train_ratio", "global_seed")},
        "bitmask": mask and mask.sha256,
        "mask_key": mask and mask.key,
        "inputs": hashlib.sha256(json_text(list(hashes.items())).encode()).hexdigest(),
    }
    folder = args.base_dir / args.out_subdir  # a path from / stands for itself
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", f"{folder} is being prepared by another process", say):
        make_room(folder, settings, args.skip_existing)
        jobs = jobs_of(inputs, args, folder, layout, mask)
        for split in SPLITS:
            (folder / split).mkdir(exist_ok=True)
            remove_leftovers(folder / split, sum(job.folder.name == split for job in jobs))
        progress = Progress(jobs, say)
        results = make_all(jobs, args.num_workers, progress)
        errors = [[os.path.relpath(bad.place, args.base_dir), bad.reason] for bad in found.bad]
        errors += [error for made in results for error in made.errors]
        if any(made.files for made in results):
            meta = finish(folder, jobs, settings, copies, errors)
            report(folder, meta, progress, time.monotonic() - began, say)
    refuse_errors(errors, len(inputs))


def finish(
    folder: Path,
    jobs: Sequence[Job],
    settings: dict[str, Any],
    copies: list[list[str]],
    errors: list[list[str]],
) -> dict[str, Any]:
    """Write the indices and, last, meta.json, whose content is returned."""
    splits = {}
    for split in SPLITS:
        mine = [job for job in jobs if job.folder.name == split]
        splits[split] = write_index(folder / split, (load_json(job.description) for job in mine))
    meta = {
        "kind": KIND,
        "format": FORMAT,
        **asdict(jobs[0].layout),
        "scenarios": scenarios_of(folder),
        "splits": splits,
        "settings": settings,
        "duplicates": copies,
        "errors": errors,
    }
    write_json(folder / META, meta)
    return meta


def report(folder: Path, meta: dict[str, Any], progress: Progress, seconds: float, say: Say) -> None:
    """The table at the end."""
    for split, stated in meta["splits"].items():
        say(f"{split:<10} {stated['examples']:,} pairs of {stated['files']:,} files")
    for name, counts in meta["scenarios"].items():
        say(f"           {name}: {', '.join(f'{count:,} {split}' for split, count in counts.items())}")
    size = sum(path.stat().st_size for path in folder.glob("*/shard_*.bin"))
    say(f"shards     {progress.total:,}, {progress.kept:,} of them were there; {size / 1e6:,.1f} MB")
    say(f"seconds    {seconds:.1f}")
    if not meta["splits"]["train"]["examples"]:
        say("note: no file is for training: a folder with one file gives it to the test")


def refuse_errors(errors: Sequence[list[str]], files: int) -> None:
    """Raises UserError naming the first files that could not be read."""
    if errors:
        lines = [f"{path}: {reason}" for path, reason in errors[:SHOWN_ERRORS]]
        all_of_them = f" ({META} names all)" if len(errors) > SHOWN_ERRORS else ""
        lines.append(f"{len(errors):,} of {files:,} files could not be prepared{all_of_them}")
        raise UserError("\n".join(lines))


def is_done(args: Namespace) -> bool:
    """Whether the set that the command line asks for is there, of as many files as there are; their content
    is not read.
    """
    folder = args.base_dir / args.out_subdir
    if not args.base_dir.is_dir() or not is_genomes(folder):
        return False
    meta = read_meta(folder)
    mask = mask_of(args)
    wanted = {
        "bitmask": mask and mask.sha256,
        "mask_key": mask and mask.key,
        "n_samples": args.simplify_first_n_samples or meta.n_samples,
    }
    for name in ("window_size", "sequence_length", "num_pairs", "train_ratio", "global_seed"):
        wanted[name] = getattr(args, name)
    known = sum(meta.splits[split]["files"] for split in SPLITS) + len(meta.duplicates)
    paths, _ = find_trees(args.base_dir, args.include)
    is_same = all(meta.settings.get(name) == value for name, value in wanted.items())
    return is_same and not meta.errors and known == len(paths)


def say_now(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        args = parse(argv)
        if args.state:
            say_now("done" if is_done(args) else "todo")
            return 0
        try:
            preprocess(args, say_now)
        except OSError as error:
            if error.errno in TRANSIENT_ERRORS:
                raise
            raise UserError(f"cannot prepare: {error.filename or ''} {error.strerror or error}") from None
        return 0

    return guarded("data.genomes.preprocess", work)


if __name__ == "__main__":
    sys.exit(main())
