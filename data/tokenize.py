"""A raw corpus to token bins: GPT-2 BPE, each document followed by <|endoftext|>, split by document number.

    python -m data.tokenize --name owt2                                   # the downloaded OpenWebText2
    python -m data.tokenize --name mine --input corpus/ more.jsonl.gz --text-key body
    python -m data.tokenize --name shakespeare-char --input shakespeare.txt
    python -m data.tokenize --name stdlib                                 # Python's own library, nothing to download

Workers encode one shard each (a file, or a member of a tar) into <folder>/.tokenize; the shards are then put together
in order. A shard that is done stays done: after any kill, the same command goes on, and neither kills nor the number
of workers can be told from the result. train.bin appears last, so a folder that has it is complete.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.bins import DEFAULT_DATA_DIR, META, TOKEN, dataset_folder, is_prepared
from data.bpe import END_OF_TEXT
from data.characters import tokenize_characters
from data.corpus import Bad, Shard, documents, find_shards, pack, stdlib_documents
from data.encode import Checked, best_engine
from data.order import mix, mix_array
from errors import UserError
from files import STORAGE_FAULTS, is_kept_open, load_json, remove_folder, sync, sync_folder, write_json
from processes import die_with, peak_kib

WORK = ".tokenize"
SPLIT_SEED = 2357
VAL_SHARE = 0.0005
STDLIB_VAL_SHARE = 0.01
BATCH_BYTES = 1 << 21  # text encoded at once by a worker
COPY_TOKENS = 1 << 21
SHOWN_BAD = 5
SHARDS_OF_AN_ENGINE = 16  # then a new one takes its place: it remembers every word that it has met
LINE_SECONDS = 5.0
RAW_OWT2 = "openwebtext2.jsonl.zst.tar"

STOP = 3
_shards = 0  # encoded by this worker
_counters: Any = None  # shared by the workers: documents, bytes of text, tokens; and whether to stop


# one shard, in a worker


def _start_worker(counters: Any, parent: int) -> None:
    global _counters
    _counters = counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to tell
    die_with(parent)


def _batches(items: Iterator[str | Bad], bad: list[Bad], max_bad: int) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for item in items:
        if isinstance(item, Bad):
            bad.append(item)
            if len(bad) > max_bad:
                return
            continue
        texts.append(item)
        size += len(item)
        if size >= BATCH_BYTES:
            if _counters[STOP]:
                raise InterruptedError("told to stop")
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def encode_shard(job: tuple[int, Shard, str, Path, int]) -> dict[str, Any]:
    """Encode a shard into N.bin (tokens) and N.len (tokens of each document, uint32), described by N.json, last of all.

    With more bad lines than `max_bad` nothing is kept and the description says so.
    """
    global _shards
    number, shard, text_key, work, max_bad = job
    _shards += 1
    if _shards % SHARDS_OF_AN_ENGINE == 0:
        best_engine.cache_clear()
    bad: list[Bad] = []
    total = {"documents": 0, "tokens": 0, "bytes": 0, "largest_token": 0}
    checked = Checked(number)
    targets = [work / f"{number:06d}.{ending}" for ending in ("bin", "len")]
    parts = [path.with_name(f"{path.name}.part") for path in targets]
    with open(parts[0], "wb") as tokens_file, open(parts[1], "wb") as lengths_file:
        for texts in _batches(documents(shard, text_key), bad, max_bad):
            tokens, lengths = checked.encode(texts, shard.name)
            tokens_file.write(tokens.data)
            lengths_file.write(lengths.astype("<u4").data)
            size = sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
            for name, value in (("documents", len(texts)), ("tokens", tokens.size), ("bytes", size)):
                total[name] += value
            total["largest_token"] = max(total["largest_token"], int(tokens.max()))
            with _counters.get_lock():
                for place, value in enumerate((len(texts), size, tokens.size)):
                    _counters[place] += value
        for file in (tokens_file, lengths_file):
            file.flush()
            sync(file.fileno())
    result = {"number": number, "shard": asdict(shard), "bad": len(bad), "shown": [asdict(b) for b in bad[:SHOWN_BAD]], **total,
              "peak_kib": peak_kib()}
    if len(bad) > max_bad:
        for part in parts:
            part.unlink()
        return result
    for part, target in zip(parts, targets, strict=True):
        os.replace(part, target)
    sync_folder(work)
    write_json(work / f"{number:06d}.json", result)
    return result


# all shards


def finished_shards(work: Path, shards: list[Shard]) -> dict[int, dict[str, Any]]:
    """Descriptions of the shards that an earlier run of the same plan has encoded."""
    done = {}
    for number, shard in enumerate(shards):
        try:
            found = load_json(work / f"{number:06d}.json")
            sizes = [(work / f"{number:06d}.{ending}").stat().st_size for ending in ("bin", "len")]
        except (OSError, ValueError):
            continue
        if found["shard"] == asdict(shard) and sizes == [2 * found["tokens"], 4 * found["documents"]]:
            done[number] = found
    return done


@contextmanager
def working_folder(folder: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """The folder of finished shards, emptied where they belong to another plan. Raises UserError where it is in use."""
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being prepared by another process") from None
        except OSError:
            pass  # a file system without locks
        for leftover in folder.glob(".*.bin.*.tmp"):
            leftover.unlink()
        try:
            same = load_json(work / "plan.json") == plan
        except (OSError, ValueError):
            same = False
        if not same:
            for path in work.iterdir():
                if path.name != "lock" and not is_kept_open(path):
                    path.unlink()
            write_json(work / "plan.json", plan)
        yield work


class Progress:
    """A bar on a terminal, else a line every few seconds: documents, MB and tokens a second, and the time left."""

    def __init__(self, total_bytes: int, counters: Any, say: Callable[[str], None]) -> None:
        self.total, self.counters, self.say = max(total_bytes, 1), counters, say
        self.began = self.said = time.monotonic()
        self.read = 0
        self.bar = tqdm(total=total_bytes, unit="B", unit_scale=True, desc="tokenising", disable=not sys.stderr.isatty())

    def update(self, read: int) -> None:
        """`read` more bytes of the input are done."""
        self.read += read
        self.bar.update(read)
        now = time.monotonic()
        if now - self.said < LINE_SECONDS:
            return
        self.said = now
        number, size, tokens = (int(c) for c in self.counters[:STOP])
        seconds = now - self.began
        left = timedelta(seconds=round(seconds * (self.total - self.read) / self.read)) if self.read else "?"
        line = f"{number / seconds:,.0f} documents/s  {size / seconds / 1e6:,.1f} MB/s  {tokens / seconds:,.0f} tokens/s  ETA {left}"
        if self.bar.disable:
            self.say(f"{self.read / self.total:4.0%}  {line}")
        else:
            self.bar.set_postfix_str(line)


def encode_all(shards: list[Shard], work: Path, text_key: str, workers: int, max_bad: int, found: list[Bad],
               say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Descriptions of all shards in order, encoded now or before. Raises UserError with the first bad lines."""
    done = finished_shards(work, shards)
    if done:
        say(f"{len(done)} of {len(shards)} shards are done already")
    jobs = [(number, shard, text_key, work, max_bad) for number, shard in enumerate(shards) if number not in done]
    shown = [*found, *(Bad(**bad) for result in done.values() for bad in result["shown"])]
    count = len(found) + sum(result["bad"] for result in done.values())
    refuse_bad(count, shown, max_bad)
    context = multiprocessing.get_context("spawn")
    counters = context.Array("q", 4)
    progress = Progress(sum(job[1].size for job in jobs), counters, say)
    if jobs:
        best_engine()  # its files are made once, before the workers look for them
        with ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (counters, os.getpid())) as pool:
            waiting = {pool.submit(encode_shard, job) for job in jobs}
            try:
                while waiting:
                    ready, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                    for result in (future.result() for future in ready):
                        count += result["bad"]
                        shown += [Bad(**bad) for bad in result["shown"]]
                        refuse_bad(count, shown, max_bad)
                        done[result["number"]] = result
                        progress.update(shards[result["number"]].size)
                    progress.update(0)
            except BrokenProcessPool:
                raise UserError("a worker was killed (out of memory?): what is done stays done; try again with fewer --workers") from None
            except BaseException:
                counters[STOP] = 1
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.bar.close()
    for bad in shown[:SHOWN_BAD]:
        say(f"left out: {bad.place}: {bad.reason}")
    return [done[number] for number in range(len(shards))]


def refuse_bad(count: int, shown: list[Bad], max_bad: int) -> None:
    """Raises UserError naming the first bad lines where there are more than --max-bad."""
    if count > max_bad:
        lines = [f"{bad.place}: {bad.reason}" for bad in shown[:SHOWN_BAD]]
        raise UserError("\n".join([*lines, f"{count} bad lines or more, --max-bad is {max_bad}: nothing was written"]))


# the bins


def is_validation(first: int, count: int, share: float) -> NDArray[np.bool_]:
    """Whether documents first .. first + count - 1 of the corpus belong to the validation split."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return mix_array(numbers ^ np.uint64(mix(SPLIT_SEED))) < np.uint64(min(int(share * 2**64), 2**64 - 1))


class Split:
    """A bin being written under a temporary name, with its counts."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.file: IO[bytes] = open(self.temporary, "wb")  # noqa: SIM115  # closed by publish or abandon
        self.sha256 = hashlib.sha256()
        self.documents = self.tokens = self.largest = 0

    def add(self, tokens: NDArray[np.uint16]) -> None:
        self.file.write(tokens.data)
        self.sha256.update(tokens.data)
        self.tokens += tokens.size
        self.largest = max(self.largest, int(tokens.max(initial=0)))

    def describe(self) -> dict[str, Any]:
        return {"documents": self.documents, "tokens": self.tokens, "largest_token": self.largest, "sha256": self.sha256.hexdigest()}

    def publish(self) -> None:
        self.file.flush()
        sync(self.file.fileno())
        self.file.close()
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)

    def abandon(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)


def assemble(results: list[dict[str, Any]], work: Path, folder: Path, share: float, description: dict[str, Any]) -> dict[str, Any]:
    """Put the shards together as val.bin, meta.json and, last, train.bin. Raises UserError where a split stays empty."""
    total = sum(result["documents"] for result in results)
    if total < 2:
        raise UserError(f"{total} documents are too few: both splits need one")
    chosen = np.concatenate([np.flatnonzero(is_validation(first, min(1 << 20, total - first), share)) + first
                             for first in range(0, total, 1 << 20)])
    if not 0 < chosen.size < total:
        chosen = np.array([mix(SPLIT_SEED) % total])
    val, train = splits = Split(folder / "val.bin"), Split(folder / "train.bin")
    try:
        first = 0
        for result in results:
            if not result["documents"]:
                continue
            stem = work / f"{result['number']:06d}"
            tokens = np.memmap(f"{stem}.bin", dtype=TOKEN, mode="r")
            ends = np.cumsum(np.fromfile(f"{stem}.len", dtype="<u4"), dtype=np.int64)
            mine = chosen[np.searchsorted(chosen, first):np.searchsorted(chosen, first + ends.size)] - first
            place = 0
            for document in mine:
                begin, end = int(ends[document - 1]) if document else 0, int(ends[document])
                copy(tokens, place, begin, train)
                copy(tokens, begin, end, val)
                place = end
            copy(tokens, place, tokens.size, train)
            val.documents += mine.size
            train.documents += ends.size - mine.size
            first += ends.size
        meta = {**description, "end_of_text": END_OF_TEXT, "split_seed": SPLIT_SEED, "val_share": share,
                "bytes": sum(result["bytes"] for result in results),
                "bad_lines": description["bad_lines"] + sum(result["bad"] for result in results),
                "splits": {"train": train.describe(), "val": val.describe()}}
        (folder / "train.bin").unlink(missing_ok=True)  # of an earlier preparation: it must not stand beside the new val.bin
        sync_folder(folder)
        val.publish()
        write_json(folder / META, meta)
        train.publish()
    finally:
        for split in splits:
            split.abandon()
    return meta


def copy(tokens: NDArray[np.uint16], begin: int, end: int, split: Split) -> None:
    for place in range(begin, end, COPY_TOKENS):
        split.add(np.ascontiguousarray(tokens[place:min(end, place + COPY_TOKENS)]))


# the command


def tokenize(inputs: list[Path], folder: Path, text_key: str = "text", workers: int | None = None, max_bad: int = 0,
             val_share: float = VAL_SHARE, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Prepare a dataset folder from raw files. Returns what meta.json holds. Raises UserError."""
    began = time.monotonic()
    shards, bad = find_shards(inputs)
    plan = {"shards": [asdict(shard) for shard in shards], "text_key": text_key, "tokenizer": "gpt2",
            "changed": {path: os.stat(path).st_mtime_ns for path in sorted({shard.path for shard in shards})}}
    try:
        with working_folder(folder, plan) as work:
            need_space(folder, sum(shard.size for shard in shards))
            results = encode_all(shards, work, text_key, workers or os.cpu_count() or 1, max_bad, bad, say)
            meta = assemble(results, work, folder, val_share, {"tokenizer": "gpt2", "engine": best_engine().name, "bad_lines": len(bad)})
            remove_folder(work)
        with suppress(OSError):
            work.rmdir()  # where the mount has kept the lock, which is closed only now
    except OSError as error:
        raise UserError(f"cannot prepare {folder}: {error.filename or ''} {error.strerror or error}") from None
    report(meta, results, time.monotonic() - began, say)
    return meta


def need_space(folder: Path, raw_bytes: int) -> None:
    """Raises UserError where the disk cannot hold the shards and the bins: about the size of compressed input, twice."""
    free = shutil.disk_usage(folder).free
    if free < 2 * raw_bytes:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB free; about {2 * raw_bytes / 1e9:.1f} GB are needed for shards and bins")


def report(meta: dict[str, Any], results: list[dict[str, Any]], seconds: float, say: Callable[[str], None]) -> None:
    """The table at the end."""
    tokens = sum(split["tokens"] for split in meta["splits"].values())
    own = peak_kib()
    rows = [("documents", f"{sum(s['documents'] for s in meta['splits'].values()):,}  ({meta['splits']['val']['documents']:,} for validation)"),
            ("tokens", f"{tokens:,}  ({meta['splits']['val']['tokens']:,} for validation)"),
            ("bytes per token", f"{meta['bytes'] / max(1, tokens):.3f}"), ("left out", f"{meta['bad_lines']:,} lines"),
            ("engine", meta["engine"]), ("seconds", f"{seconds:.1f}  ({meta['bytes'] / seconds / 1e6:,.1f} MB of text a second)"),
            ("peak memory", f"{own / 1024:,.0f} MiB, and {max((r['peak_kib'] for r in results), default=0) / 1024:,.0f} MiB a worker")]
    for name, value in rows:
        say(f"{name:<16} {value}")


def prepare_stdlib(folder: Path, workers: int | None = None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The standard library as a dataset: packed as a raw corpus, then through the same pipeline as any other."""
    archive = folder / "raw" / "stdlib.jsonl.zst.tar"
    try:
        if not archive.exists():
            pack(stdlib_documents(), archive)
    except OSError as error:
        raise UserError(f"cannot prepare {folder}: {error.strerror or error}") from None
    return tokenize([archive], folder, workers=workers, val_share=STDLIB_VAL_SHARE, say=say)


def delete_raw(inputs: list[Path], folder: Path, say: Callable[[str], None]) -> None:
    """Delete the raw files once the bins are shown to be right. Raises UserError where they are not."""
    from data.inspect import faults

    wrong = faults(folder)
    if wrong:
        raise UserError("\n".join([*wrong, "the raw files are kept"]))
    for path in inputs:
        if path.is_dir():
            raise UserError(f"--delete-raw deletes files named by --input, not the folder {path}; it is kept")
        path.unlink()
        say(f"deleted {path}")


def parse(argv: list[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(prog="data.tokenize", description="Prepare a dataset for training.")
    parser.add_argument("--name", default="openwebtext2", help="of the dataset: its folder below --data_dir [openwebtext2]")
    parser.add_argument("--input", nargs="+", type=Path, default=None, metavar="PATH", help="files or folders [the downloaded tar of --name]")
    parser.add_argument("--data_dir", "--data-dir", default=None, help=f"root of the datasets [{DEFAULT_DATA_DIR}]")
    parser.add_argument("--text-key", default="text", help="key or column of a document's text [text]")
    parser.add_argument("--tokenizer", choices=["gpt2", "char"], default=None, help="[char for names that end in -char, else gpt2]")
    parser.add_argument("--workers", type=int, default=None, help="processes [all cores]")
    parser.add_argument("--max-bad", type=int, default=0, help="bad lines to leave out before stopping [0]")
    parser.add_argument("--val-share", type=float, default=VAL_SHARE, help=f"share of the documents for validation [{VAL_SHARE}]")
    parser.add_argument("--delete-raw", action="store_true", help="delete the input files once the bins are verified")
    parser.add_argument("--force", action="store_true", help="prepare again what is there")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    if not 0 < args.val_share < 1:
        parser.error("--val-share must be between 0 and 1")
    return args


def say_now(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    folder = dataset_folder(args.name, args.data_dir)
    try:
        if is_prepared(folder) and not args.force:
            say_now(f"{folder} is prepared already (--force prepares it again)")
            return 0
        if args.name == "stdlib" and args.input is None:
            prepare_stdlib(folder, args.workers, say_now)
            return 0
        inputs = args.input or [folder / RAW_OWT2]
        if args.input is None and not inputs[0].exists():
            raise UserError(f"{inputs[0]} is not there: bash iridis/download-dataset/job.sh --full fetches it, or give --input")
        if (args.tokenizer or ("char" if args.name.endswith("-char") else "gpt2")) == "char":
            tokenize_characters(inputs, folder, args.text_key, args.max_bad, say_now)
        else:
            tokenize(inputs, folder, args.text_key, args.workers, args.max_bad, args.val_share, say_now)
        if args.delete_raw:
            delete_raw(inputs, folder, say_now)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"data.tokenize: error: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno not in STORAGE_FAULTS:
            raise
        print(f"data.tokenize: error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.tokenize: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
