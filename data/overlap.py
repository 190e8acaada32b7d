"""How much of a dataset's validation text is in its training text: windows of tokens that occur there
verbatim.

    python -m data.overlap stdlib                         # windows of 50 tokens; of bytes or characters, 200
    python -m data.overlap lib_docs --length 100 --output overlap.json

A window is `--length` consecutive tokens, of one document where the tokens say where one ends. A token of a
vocabulary of word pieces stands for about four bytes; 50 bytes would be less than a line, so that windows of
bytes and characters are four times as long unless --length says otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config.programs import Arguments, guarded
from data.apart import IN_META as APART
from data.bins import (
    DEFAULT_DATA_DIR,
    Tokens,
    data_differences,
    dataset_folder,
    dtype_of,
    ends_of,
    identity_of,
    is_prepared,
    map_tokens,
    need_format,
    not_prepared,
    read_meta,
)
from data.setup import ensure_prepared
from data.shared_runs import LENGTH, LONGEST, PIECE, Places, default_length, shared_windows, windows_of
from errors import UserError
from files import read_json, write_json

PROG = "data.overlap"


@dataclass(frozen=True)
class Overlap:
    """windows: of so many tokens in the validation text; shared_windows: those that are in the training text.
    documents: of the validation text that have a window; None where the tokens do not say where one ends.
    """

    window_tokens: int
    windows: int
    shared_windows: int
    documents: int | None
    shared_documents: int | None

    @property
    def share(self) -> float:
        """Of the windows; 0 where there is none."""
        return self.shared_windows / max(1, self.windows)


def measure(train: Tokens, val: Tokens, ends: Places | None, length: int) -> Overlap:
    """ends: as `windows_of` has them."""
    starts = windows_of(val, ends, length)
    shared = shared_windows(train, val, starts, length)
    documents = shared_documents = None
    if ends is not None:
        numbers = np.searchsorted(ends, starts)
        documents = int(np.unique(numbers).size)
        shared_documents = int(np.unique(numbers[shared]).size)
    return Overlap(length, starts.size, int(shared.sum()), documents, shared_documents)


def overlap_of(folder: Path, length: int | None) -> dict[str, Any]:
    """Of a prepared dataset: what it holds, its overlap, and what identifies the bins.

    Raises UserError for examples, which are no running text, and bins that cannot be read.
    """
    meta = read_meta(folder)
    need_format(folder, meta, None)
    end = meta.get("end_of_text")
    length = length or default_length(meta.get("tokenizer"))
    train, val = (map_tokens(folder / f"{name}.bin", dtype=dtype_of(meta)) for name in ("train", "val"))
    found = measure(train, val, None if end is None else ends_of(val, end), length)
    overlap = {**asdict(found), "share": found.share}
    if APART in meta:
        overlap |= {name: meta[APART][name] for name in ("dropped_documents", "dropped_tokens")}
    stated = meta.get("splits", {})
    return {
        "dataset": folder.name,
        "tokenizer": meta.get("tokenizer"),
        "train_tokens": train.size,
        "train_documents": stated.get("train", {}).get("documents"),
        "val_tokens": val.size,
        "val_documents": stated.get("val", {}).get("documents"),
        "overlap": overlap,
        "data": identity_of(folder),
    }


def earlier(output: Path | None, folder: Path, length: int | None) -> dict[str, Any] | None:
    """What an earlier call has written, where it is of the same bins and length."""
    known = (read_json(output) if output else None) or {}
    overlap, data = known.get("overlap"), known.get("data")
    if not isinstance(overlap, dict) or not isinstance(data, dict) or known.get("dataset") != folder.name:
        return None
    wanted = length or default_length(read_meta(folder).get("tokenizer"))
    is_same = overlap.get("window_tokens") == wanted and not data_differences(identity_of(folder), data)
    return known if is_same else None


def lines_of(found: dict[str, Any]) -> list[str]:
    """For a terminal."""
    overlap = found["overlap"]
    kind = found["tokenizer"] or "of an unknown tokenizer"
    lines = [
        f"dataset    {found['dataset']}",
        f"windows    {overlap['windows']:,} of {overlap['window_tokens']} tokens ({kind}), validation text",
        f"shared     {overlap['shared_windows']:,} of them are in the training text, {overlap['share']:.3%}",
    ]
    if overlap["documents"] is None:
        lines.append("documents  unknown: these tokens do not say where one ends")
    else:
        shared, every = overlap["shared_documents"], overlap["documents"]
        lines.append(f"documents  {shared:,} of {every:,} have such a window")
    if "dropped_documents" in overlap:
        dropped, tokens = overlap["dropped_documents"], overlap["dropped_tokens"]
        lines.append(f"left out   {dropped:,} documents of validation, {tokens:,} tokens, that had one")
    return lines


def _parser() -> Arguments:
    parser = Arguments(prog=PROG, description="How much of the validation text is in the training text.")
    parser.add_argument("dataset", help="name of a prepared dataset, or its folder")
    parser.add_argument("--data_dir", default=None, help=f"where datasets are prepared [{DEFAULT_DATA_DIR}]")
    parser.add_argument(
        "--length",
        type=int,
        default=None,
        help=f"tokens of a window [{LENGTH}; of bytes and characters {LENGTH * PIECE}]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="file to write, as JSON; what it has of the same bins and length is not measured again",
    )
    return parser


def run(argv: Sequence[str] | None) -> int:
    """Raises UserError."""
    args = _parser().parsed(argv)
    if args.length is not None and not 1 <= args.length <= LONGEST:
        raise UserError(f"--length {args.length}: must be between 1 and {LONGEST}")
    folder = dataset_folder(args.dataset, args.data_dir)
    ensure_prepared([args.dataset], args.data_dir)
    if not is_prepared(folder):
        raise UserError(not_prepared(args.dataset, folder))
    found = earlier(args.output, folder, args.length)
    if found is None:
        found = overlap_of(folder, args.length)
        if args.output is not None:
            write_json(args.output, found)
    print("\n".join(lines_of(found)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return guarded(PROG, lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
