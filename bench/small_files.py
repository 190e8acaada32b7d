"""One file per document: small files that share a shard, against a shard each, and against the same documents
as one file.

    python bench/small_files.py [--files 400] [--many 100000] [--workers N]

The three ways run one after the other as processes of their own, then the many files once. `files_at_work` is
what a preparation of the many keeps on disk before it is done. Prints one JSON line.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, where a module would hide the standard library's tokenize

# ruff: noqa: E402
import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time

from data.bpe import gpt2
from data.find import find_shards
from data.tokenize import grouped

TEXT = "document {} of forty bytes, more or less"


def write(folder: Path, count: int) -> Path:
    """A folder with a file for each document, a thousand in a folder of its own."""
    for number in range(count):
        part = folder / f"{number // 1000:04d}"
        if number % 1000 == 0:
            part.mkdir(parents=True)
        (part / f"{number:06d}.txt").write_text(TEXT.format(number))
    return folder


def seconds(folder: Path, source: Path, workers: int, before: str = "pass") -> float:
    """What one preparation takes, with some code run before it."""
    begin = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, data.tokenize as own; {before}; sys.exit(own.main())",
            "--name",
            str(folder),
            "--input",
            str(source),
            "--workers",
            str(workers),
        ],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--many", type=int, default=100_000, help="0 leaves this part out")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    gpt2()
    folder = Path(tempfile.mkdtemp(prefix="bench-small-files-"))
    try:
        apart = write(folder / "apart", args.files)
        together = folder / "together.jsonl"
        together.write_text(
            "".join(json.dumps({"text": TEXT.format(number)}) + "\n" for number in range(args.files))
        )
        one = seconds(folder / "one", together, args.workers)
        shared = seconds(folder / "shared", apart, args.workers)
        each = seconds(folder / "each", apart, args.workers, "own.GROUP_BYTES = 1")
        same = len({(folder / name / "train.bin").read_bytes() for name in ("one", "shared", "each")}) == 1
        result = {
            "bench": "small_files",
            "files": args.files,
            "workers": args.workers,
            "of_a_shard_each": shared / each,
            "of_one_file": shared / one,
            "tokens_identical": same,
        }
        if args.many:
            many = write(folder / "many", args.many)
            taken = seconds(folder / "set", many, args.workers)
            result |= {
                "many": args.many,
                "files_a_second": args.many / taken,
                "seconds": taken,
                "files_at_work": 3 * len(grouped(find_shards([many]).shards)) + 2,
            }
        print(json.dumps(result))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
