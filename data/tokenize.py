"""A raw corpus to token bins: GPT-2 BPE, each document followed by <|endoftext|>, or what --tokenizer names;
split by document number.

    python -m data.tokenize --name owt2                                   # the downloaded OpenWebText2
    python -m data.tokenize --name mine --input corpus/ more.jsonl.gz --text-key body --include '*.jsonl.gz'
    python -m data.tokenize --name book --input book.txt --val-fraction 0.1   # one document, which is cut
    python -m data.tokenize --name shakespeare-char --input shakespeare.txt
    python -m data.tokenize --name mine --input corpus/ --tokenizer bytes     # or gpt2, char
    python -m data.tokenize --name mine-chat --format chat --input chat.jsonl     # examples for fine-tuning
    python -m data.tokenize --name stdlib                                 # a built-in corpus: no download

Each worker encodes one group of shards at a time (a shard is a file, or a member of a tar; consecutive small
ones share a group) into <folder>/.tokenize; the groups are then joined in order. Finished groups are kept:
after a kill, the same command resumes, and neither kills nor the number of workers change the result.
train.bin appears last, so a folder that has it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config.formats import INDEX, LINES
from config.programs import guarded
from config.tokenizers import GPT2
from data.bins import (
    WORK,
    dataset_folder,
    dtype_for,
    is_prepared,
    read_meta,
    refuse_half,
)
from data.built_in import BUILT_IN, packed
from data.characters import tokenize_characters
from data.example_setup import in_meta, known_by, leave_texts_out
from data.find import SHOWN_BAD, Bad, Found, find_shards
from data.split import assemble
from data.streams import Shard
from data.tokenize_flags import VAL_SHARE, default_share, default_tokenizer, parse
from data.tokenizer import KINDS, Tokenizer, named, open_tokenizer
from data.vocabulary import Vocabulary, described
from data.workers import STOP, Job, encode_group, sizes_of_files, start_worker
from errors import UserError
from files import is_kept_open, load_json, remove_folder, write_json
from processes import peak_kib

# small shards share a group up to this size on disk and this number
GROUP_BYTES, GROUP_SHARDS = 1 << 22, 4096
LINE_SECONDS = 5.0
RAW_OWT2 = "openwebtext2.jsonl.zst.tar"

# groups of shards


def grouped(shards: list[Shard]) -> list[list[Shard]]:
    """The same shards in the same order, with small ones grouped: each group costs three files and three
    syncs.
    """
    groups: list[list[Shard]] = []
    size = 0
    for shard in shards:
        if not groups or size + shard.size > GROUP_BYTES or len(groups[-1]) >= GROUP_SHARDS:
            groups.append([])
            size = 0
        groups[-1].append(shard)
        size += shard.size
    return groups


def finished_groups(work: Path, groups: list[list[Shard]], token_bytes: int) -> dict[int, dict[str, Any]]:
    """Descriptions of the groups that an earlier run of the same plan has encoded, in tokens of so many bytes
    each.
    """
    done = {}
    for number, group in enumerate(groups):
        try:
            found = load_json(work / f"{number:06d}.json")
            wanted = sizes_of_files(found, token_bytes)
            sizes = {ending: (work / f"{number:06d}.{ending}").stat().st_size for ending in wanted}
        except (OSError, ValueError):
            continue
        if found["shards"] == len(group) and sizes == wanted:
            done[number] = found
    return done


@contextmanager
def working_folder(folder: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """The folder of finished groups, emptied where they belong to another plan.

    Raises UserError where another process uses it.
    """
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being prepared by another process") from None
        except OSError:
            pass  # a file system without locks
        for ending in ("bin", INDEX, LINES):
            for leftover in folder.glob(f".*.{ending}.*.tmp"):
                leftover.unlink()
        try:
            same = load_json(work / "plan.json") == plan
        except (OSError, ValueError):
            same = False
        if not same:
            refuse_other_tokenizer(work, plan)
            for path in work.iterdir():
                if path.name != "lock" and not is_kept_open(path):
                    path.unlink()
            write_json(work / "plan.json", plan)
        yield work


def refuse_other_tokenizer(work: Path, plan: dict[str, Any]) -> None:
    """Raises UserError where the folder holds finished groups of another tokenizer than the plan's."""
    try:
        there = load_json(work / "plan.json")
    except (OSError, ValueError):
        return
    if not isinstance(there, dict):
        return
    differs = any(there.get(name) != plan.get(name) for name in ("tokenizer", "tokenizer_sha256"))
    if differs and any(work.glob("*.bin")):
        raise UserError(
            f"{work} holds unfinished work of the tokenizer {there.get('tokenizer')!r}: finish that, give"
            " another --name, or delete that folder"
        )


class Progress:
    """A bar on a terminal, else a line every few seconds: documents, MB and tokens a second, and the time
    left.
    """

    def __init__(self, total_bytes: int, counters: Any, say: Callable[[str], None]) -> None:
        self.total, self.counters, self.say = max(total_bytes, 1), counters, say
        self.began = self.printed = time.monotonic()
        self.read = 0
        self.bar = tqdm(
            total=total_bytes, unit="B", unit_scale=True, desc="tokenising", disable=not sys.stderr.isatty()
        )

    def update(self, read: int) -> None:
        """`read` more bytes of the input are done."""
        self.read += read
        self.bar.update(read)
        now = time.monotonic()
        if now - self.printed < LINE_SECONDS:
            return
        self.printed = now
        documents, size, tokens = (int(c) for c in self.counters[:STOP])
        seconds = now - self.began
        left = timedelta(seconds=round(seconds * (self.total - self.read) / self.read)) if self.read else "?"
        line = (
            f"{documents / seconds:,.0f} documents/s  {size / seconds / 1e6:,.1f} MB/s  "
            f"{tokens / seconds:,.0f} tokens/s  ETA {left}"
        )
        if self.bar.disable:
            self.say(f"{self.read / self.total:4.0%}  {line}")
        else:
            self.bar.set_postfix_str(line)


def encode_all(
    shards: list[Shard],
    work: Path,
    text_key: str,
    format: str | None,
    tokenizer: Tokenizer,
    workers: int,
    max_bad: int,
    found: list[Bad],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Descriptions of all groups in order, encoded now or before.

    Raises UserError with the first bad lines.
    """
    groups = grouped(shards)
    done = finished_groups(work, groups, dtype_for(tokenizer.size).itemsize)
    if done:
        say(f"{sum(len(groups[number]) for number in done)} of {len(shards)} shards are done already")
    jobs = [
        Job(number, group, text_key, work, max_bad, tokenizer.known, format)
        for number, group in enumerate(groups)
        if number not in done
    ]
    shown = [*found, *(Bad(**bad) for result in done.values() for bad in result["shown"])]
    count = len(found) + sum(result["bad"] for result in done.values())
    refuse_bad(count, shown, max_bad)
    context = multiprocessing.get_context("spawn")
    counters = context.Array("q", 4)
    progress = Progress(sum(job.size for job in jobs), counters, say)
    if jobs:
        with ProcessPoolExecutor(
            min(workers, len(jobs)), context, start_worker, (counters, os.getpid())
        ) as pool:
            waiting = {pool.submit(encode_group, job) for job in jobs}
            try:
                while waiting:
                    ready, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                    for result in (future.result() for future in ready):
                        count += result["bad"]
                        shown += [Bad(**bad) for bad in result["shown"]]
                        refuse_bad(count, shown, max_bad)
                        done[result["number"]] = result
                        progress.update(sum(shard.size for shard in groups[result["number"]]))
                    progress.update(0)
            except BrokenProcessPool:
                raise UserError(
                    "a worker was killed (out of memory?): what is done stays done; try again with fewer"
                    " --workers"
                ) from None
            except BaseException:
                counters[STOP] = 1
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.bar.close()
    for bad in shown[:SHOWN_BAD]:
        say(f"left out: {bad.place}: {bad.reason}")
    return [done[number] for number in range(len(groups))]


def refuse_bad(count: int, shown: list[Bad], max_bad: int) -> None:
    """Raises UserError naming the first bad lines where there are more than --max-bad."""
    if count > max_bad:
        lines = [f"{bad.place}: {bad.reason}" for bad in shown[:SHOWN_BAD]]
        raise UserError(
            "\n".join([*lines, f"{count} bad lines or more, --max-bad is {max_bad}: nothing was written"])
        )


# the command


def tokenize(
    inputs: list[Path],
    folder: Path,
    text_key: str = "text",
    workers: int | None = None,
    max_bad: int = 0,
    val_share: float = VAL_SHARE,
    say: Callable[[str], None] = print,
    include: Sequence[str] = (),
    val_fraction: float | None = None,
    tokenizer: str = GPT2,
    format: str | None = None,
) -> dict[str, Any]:
    """Prepare a dataset folder from raw files. Returns what meta.json holds. Raises UserError.

    tokenizer: as --tokenizer, but for one whose vocabulary is that of the text. format: of examples, as
    data/example_lines.py has it; None: documents.
    """
    began = time.monotonic()
    found = find_shards(inputs, include)
    if format is not None:
        leave_texts_out(found, inputs)
    opened = open_tokenizer(known_by(tokenizer, found, format))
    assert opened is not None, "named knows those that can be opened"
    shards, bad = found.shards, found.bad
    of_examples = {} if format is None else in_meta(format, opened)
    try:
        with working_folder(folder, {**plan_of(found, text_key, opened.known), **of_examples}) as work:
            need_space(folder, sum(shard.size for shard in shards))
            workers = workers or os.cpu_count() or 1
            results = encode_all(shards, work, text_key, format, opened, workers, max_bad, bad, say)
            for result in results:
                for reason, known in result["passed"].items():
                    found.passed.add(reason, known["first"], known["count"])
            description: dict[str, Any] = {**of_examples, "bad_lines": len(bad)}
            if found.passed.counts:
                description["passed_over"] = dict(sorted(found.passed.counts.items()))
            meta = assemble(results, work, folder, val_share, val_fraction, description, opened)
            remove_folder(work)
        with suppress(OSError):
            work.rmdir()  # where the mount has kept the lock, which is closed only now
    except OSError as error:
        raise UserError(
            f"cannot prepare {folder}: {error.filename or ''} {error.strerror or error}"
        ) from None
    for line in found.lines():
        say(line)
    report(meta, results, time.monotonic() - began, say)
    for line in advice(meta, results):
        say(line)
    return meta


def advice(meta: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
    """What the user is to know of the tokenizer."""
    lines = []
    kept = sum(result.get("kept_bytes", result["bytes"]) for result in results)
    if kept != meta["bytes"]:
        lines.append(
            f"note: the text has {meta['bytes']:,} bytes, and its tokens stand for {kept:,}: this tokenizer"
            " does not keep text as it is, and bits per byte are of what its tokens stand for"
        )
    if "vocab_size" in meta:
        lines.append(f"train with --vocab_size {meta['vocab_size']} or more")
    if "format" in meta:
        lines.append(f"answers end with token {meta['stop']}")
    elif "end_of_text" not in meta:
        lines.append(
            f"note: {meta['tokenizer']} has no end-of-text token: documents follow each other directly"
        )
    return lines


def plan_of(found: Found, text_key: str, known: Vocabulary) -> dict[str, Any]:
    """What finished groups depend on: the shards, when their files changed, how they are read and grouped,
    and the tokenizer.
    """
    digest = hashlib.sha256()
    changed: dict[str, int] = {}
    for shard in found.shards:
        if shard.path not in changed:
            changed[shard.path] = os.stat(shard.path).st_mtime_ns
        digest.update(json.dumps([*astuple(shard), changed[shard.path]]).encode())
    return {
        "shards": len(found.shards),
        "sha256": digest.hexdigest(),
        "groups": [GROUP_BYTES, GROUP_SHARDS],
        "text_key": text_key,
        "tokenizer": known.tokenizer,
        **({"tokenizer_sha256": known.tokenizer_sha256} if known.tokenizer_sha256 else {}),
    }


def need_space(folder: Path, raw_bytes: int) -> None:
    """Raises UserError where the disk cannot hold the shards and the bins: about the size of compressed
    input, twice.
    """
    free = shutil.disk_usage(folder).free
    if free < 2 * raw_bytes:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free; about {2 * raw_bytes / 1e9:.1f} GB are needed for shards"
            " and bins"
        )


def report(
    meta: dict[str, Any], results: list[dict[str, Any]], seconds: float, say: Callable[[str], None]
) -> None:
    """The table at the end."""
    tokens = sum(split["tokens"] for split in meta["splits"].values())
    own = peak_kib()
    documents = sum(result["documents"] for result in results)
    # a document that is cut in two counts in both bins
    is_cut = documents < sum(split["documents"] for split in meta["splits"].values())
    in_part = ", one of them in part" if is_cut else ""
    of_worker = max((result["peak_kib"] for result in results), default=0)
    val = meta["splits"]["val"]
    rows = [
        (
            "examples" if "format" in meta else "documents",
            f"{documents:,}  ({val['documents']:,} for validation{in_part})",
        ),
        ("tokens", f"{tokens:,}  ({val['tokens']:,} for validation)"),
        ("bytes per token", f"{meta['bytes'] / max(1, tokens):.3f}"),
        ("left out", f"{meta['bad_lines']:,} lines"),
        ("tokenizer", " by ".join(filter(None, (meta["tokenizer"], meta.get("engine"))))),
        ("seconds", f"{seconds:.1f}  ({meta['bytes'] / seconds / 1e6:,.1f} MB of text a second)"),
        ("peak memory", f"{own / 1024:,.0f} MiB, and {of_worker / 1024:,.0f} MiB a worker"),
    ]
    for name, value in rows:
        say(f"{name:<16} {value}")


def raw_owt2(folder: Path) -> Path:
    """The downloaded OpenWebText2. Raises UserError."""
    archive = folder / RAW_OWT2
    if not archive.exists():
        raise UserError(
            f"{archive} is not there: bash iridis/download-dataset/job.sh --full fetches it, or give --input"
        )
    return archive


def need_same_format(folder: Path, wanted: str | None) -> None:
    """Raises UserError where a prepared folder holds examples of another format, or running text."""
    there = read_meta(folder).get("format")
    if there != wanted:
        held = "documents" if there is None else f"examples of --format {there}"
        asked = "no --format asks for examples" if wanted is None else f"--format is {wanted}"
        raise UserError(
            f"{folder} is prepared and holds {held}, but {asked}: give another --name, or --force, which"
            " prepares it again"
        )


def need_same_tokenizer(folder: Path, wanted: Vocabulary) -> None:
    """Raises UserError where a prepared folder states another tokenizer."""
    there = described(read_meta(folder))
    if there.tokenizer and (there.tokenizer, there.tokenizer_sha256) != (
        wanted.tokenizer,
        wanted.tokenizer_sha256,
    ):
        raise UserError(
            f"{folder} is prepared with the tokenizer {there.tokenizer!r}, which --tokenizer does not"
            " name: give another --name, or --force, which prepares it again"
        )


def delete_raw(inputs: list[Path], folder: Path, say: Callable[[str], None]) -> None:
    """Delete the raw files after verifying the bins. Raises UserError where these are wrong."""
    from data.inspect import problems_of

    wrong = problems_of(folder)
    if wrong:
        raise UserError("\n".join([*wrong, "the raw files are kept"]))
    for path in dict.fromkeys(inputs):
        if path.is_dir():
            raise UserError(f"--delete-raw deletes files named by --input, not the folder {path}; it is kept")
        path.unlink()
        say(f"deleted {path}")


def say_now(line: str) -> None:
    """Print a line, whatever letters the terminal knows."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def run(args: Namespace) -> int:
    """Prepare the dataset that the command line asks for, and return the exit code. Raises UserError."""
    folder = dataset_folder(args.name, args.data_dir)
    wanted = args.tokenizer or default_tokenizer(args)
    vocabulary = named(wanted)
    if is_prepared(folder) and not args.force:
        need_same_format(folder, args.format)
        if args.tokenizer:
            need_same_tokenizer(folder, vocabulary)
        say_now(f"{folder} is prepared already (--force prepares it again)")
        return 0
    if not args.force:
        refuse_half(folder)
    inputs = args.input or [packed(args.name, folder) if args.name in BUILT_IN else raw_owt2(folder)]
    if args.format is None and KINDS[str(vocabulary.tokenizer)].is_learned:
        if args.val_share is not None:
            say_now("note: --val-share counts documents and has no effect on characters; --val-fraction has")
        tokenize_characters(
            inputs, folder, args.text_key, args.max_bad, say_now, args.include, args.val_fraction
        )
    else:
        tokenize(
            inputs,
            folder,
            args.text_key,
            args.workers,
            args.max_bad,
            args.val_share or default_share(args),
            say_now,
            args.include,
            args.val_fraction,
            wanted,
            args.format,
        )
    if args.delete_raw:
        delete_raw(inputs, folder, say_now)
    return 0


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        try:
            return run(parse(argv))
        except KeyboardInterrupt:
            print("data.tokenize: interrupted; the same command goes on where it was", file=sys.stderr)
            return 130

    return guarded("data.tokenize", work)


if __name__ == "__main__":
    sys.exit(main())
