"""Flags of data.genomes.preprocess, in the spelling of the public code."""

from __future__ import annotations

import argparse
import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from config.programs import Arguments, with_underscores
from data.genomes.inputs import MASK_KEY


def _whole(least: int) -> Callable[[str], int]:
    """For argparse: a whole number of at least `least`, also written as 1e6."""

    def number(text: str) -> int:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not value.is_integer() or value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
        return int(value)

    return number


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text!r}")
    return value


def _path(text: str) -> Path:
    """An empty word is an unset shell variable, and would mean the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


# name, type, default, help
FLAGS = (
    ("base_dir", _path, None, "folder with the tree sequences, in a folder for each scenario"),
    ("out_subdir", _path, Path("processed"), "the set: a folder below --base_dir, or a path from /"),
    ("window_size", _whole(1), 2000, "bp of a window"),
    ("sequence_length", _whole(1), 1_000_000, "bp that are used of each tree sequence, from its beginning"),
    ("num_pairs", _whole(1), 200, "haplotype pairs of each tree sequence"),
    ("simplify_first_n_samples", _whole(0), 50, "samples that are used; 0: those of the first file"),
    ("train_ratio", _share, 0.9, "share of each folder's files for training, rounded down"),
    ("global_seed", _whole(0), 12345, "of the split, the pairs and the parts of the mask"),
    ("num_workers", _whole(1), len(os.sched_getaffinity(0)), "processes"),
    ("bitmask", _path, None, "accessible bp of a chromosome (.npz or .npy): a part hides sites of each file"),
    ("mask_key", str, MASK_KEY, "the array of --bitmask, true where accessible"),
)


def parse(argv: Sequence[str] | None) -> Namespace:
    """The command line. Raises UserError."""
    parser = Arguments(
        prog="data.genomes.preprocess",
        description="Tree sequences to examples of the recipe coalescence.",
        epilog="docs/genomes.md",
        allow_abbrev=False,
    )
    for name, kind, default, text in FLAGS:
        parser.add_argument(
            f"--{name}",
            type=kind,
            default=default,
            required=name == "base_dir",
            help=f"{text} [{default}]",
        )
    parser.add_argument(
        "--include", nargs="+", default=(), metavar="PATTERN", help="only files whose path matches one [all]"
    )
    parser.add_argument(
        "--skip_existing",
        action="store_true",
        default=True,
        help="keep what is there and right [the default]",
    )
    parser.add_argument(
        "--no_skip_existing", action="store_false", dest="skip_existing", help="make the whole set again"
    )
    parser.add_argument(
        "--state", action="store_true", help="only tell whether the set is there: done or todo"
    )
    return parser.parsed(with_underscores(sys.argv[1:] if argv is None else argv))
