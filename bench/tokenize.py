"""Corpus to bins against the plain way: MB of text a second from tar to bins, peak memory, and whether all
tokens agree.

    python bench/tokenize.py [--megabytes 300] [--workers N] [--skip-plain]

Makes a corpus in OpenWebText2's form (a tar of zstandard JSON lines) out of text files on this machine. The
plain way
is: for each member, decompress, parse, tiktoken's encode_ordinary_batch with all cores, concatenate with
numpy. Both run in turn as processes of their own; memory is the resident memory of all their processes
together. Prints one JSON line.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, where a module would hide the standard library's tokenize

# ruff: noqa: E402
import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard

from files import json_text

MEMBERS = 32
LONGEST = 20_000  # characters of a document
SUFFIXES = {
    ".py",
    ".txt",
    ".md",
    ".rst",
    ".html",
    ".js",
    ".ts",
    ".c",
    ".h",
    ".hpp",
    ".tcl",
    ".pl",
    ".pm",
    ".json",
    ".css",
    ".xml",
    ".el",
}


def real_text() -> Iterator[str]:
    """Text files of this machine's own installation, cut into documents."""
    installed = sysconfig.get_paths()
    roots = [
        Path(installed["stdlib"]),
        Path(installed["purelib"]),
        Path("/usr/share"),
        Path("/usr/lib"),
        Path("/usr/include"),
    ]
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix not in SUFFIXES or path.is_symlink():
                    continue
                try:
                    text = path.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                yield from (text[begin : begin + LONGEST] for begin in range(0, len(text), LONGEST))


def make_corpus(archive: Path, megabytes: int) -> tuple[int, int]:
    """Bytes and documents written.

    Where the machine has less text, it is taken again with another first line.
    """
    wanted, written, count, turn = megabytes * 1_000_000, 0, 0, 0
    with tarfile.open(archive, "w") as tar:
        lines: list[bytes] = []
        size = member = 0

        def flush() -> None:
            nonlocal size, member
            content = zstandard.ZstdCompressor(level=3).compress(b"".join(lines))
            entry = tarfile.TarInfo(f"{member:03d}.jsonl.zst")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
            lines.clear()
            size, member = 0, member + 1

        while written < wanted:
            for text in real_text():
                text = f"{turn}\n{text}" if turn else text
                raw = len(text.encode())
                lines.append(json.dumps({"text": text, "meta": {"n": count}}).encode() + b"\n")
                written, size, count = written + raw, size + raw, count + 1
                if size >= wanted / MEMBERS:
                    flush()
                if written >= wanted:
                    break
            turn += 1
        if lines:
            flush()
    return written, count


def plain(archive: Path, folder: Path) -> None:
    """The plain way, with the same split, so that the results can be compared."""
    import tiktoken

    from data.split import is_validation
    from data.tokenize import VAL_SHARE

    encoding, parts, lengths = tiktoken.get_encoding("gpt2"), [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            content = zstandard.ZstdDecompressor().stream_reader(tar.extractfile(member)).read()  # type: ignore[arg-type]
            texts = [json.loads(line)["text"] for line in content.splitlines()]
            for tokens in encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1):
                tokens.append(50256)
                parts.append(np.array(tokens, dtype=np.uint16))
                lengths.append(len(tokens))
    chosen = is_validation(0, len(parts), VAL_SHARE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, mine in (("val", True), ("train", False)):
        np.concatenate([part for part, val in zip(parts, chosen, strict=True) if val == mine]).tofile(
            folder / f"{name}.bin"
        )


def children(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from children(int(child))
    except OSError:
        return


def resident(pid: int) -> int:
    total = 0
    for process in children(pid):
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
        except (OSError, IndexError):
            continue
    return total


def measure(command: list[str]) -> dict[str, float]:
    """Seconds, and the largest resident memory of the process and all it starts."""
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{command} ended with code {process.returncode}")
    return {"seconds": time.perf_counter() - begin, "peak_mb": peak / 1e6}


def sums(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / f"{name}.bin").read_bytes()).hexdigest() for name in ("train", "val")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--skip-plain", action="store_true")
    parser.add_argument("--as-plain", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_plain:
        plain(*args.as_plain)
        return
    from data.bpe import gpt2

    gpt2()
    folder = Path(tempfile.mkdtemp(prefix="bench-tokenize-"))
    try:
        archive = folder / "corpus.tar"
        size, count = make_corpus(archive, args.megabytes)
        ours = measure(
            [
                sys.executable,
                "-m",
                "data.tokenize",
                "--name",
                "ours",
                "--data_dir",
                str(folder),
                "--input",
                str(archive),
                "--workers",
                str(args.workers),
            ]
        )
        result: dict[str, Any] = {
            "bench": "tokenize",
            "megabytes": size / 1e6,
            "documents": count,
            "cores": os.cpu_count(),
            "workers": args.workers,
            "mb_per_second": size / 1e6 / ours["seconds"],
            "peak_mb": ours["peak_mb"],
        }
        if not args.skip_plain:
            reference = measure([sys.executable, __file__, "--as-plain", str(archive), str(folder / "plain")])
            result |= {
                "plain_mb_per_second": size / 1e6 / reference["seconds"],
                "plain_peak_mb": reference["peak_mb"],
                "ratio": reference["seconds"] / ours["seconds"],
                "tokens_identical": sums(folder / "ours") == sums(folder / "plain"),
            }
        print(json_text(result))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
