"""One group of shards as tokens, in a worker process of data.tokenize.

ProcessPoolExecutor(workers, context, start_worker, (counters, os.getpid())).submit(encode_group, job)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sized
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import processes
from config.formats import LINES
from data.corpus import documents, records
from data.encode import best_engine
from data.example_encode import ExampleEncoder, readable
from data.example_lines import READERS, Example
from data.find import SHOWN_BAD, Bad
from data.streams import Shard
from data.tokenizer import Tokenizer, open_tokenizer, sizes_of
from data.vocabulary import Vocabulary
from files import sync, sync_folder, write_json
from processes import peak_kib

BATCH_BYTES = 1 << 21  # text encoded at once by a worker
GROUPS_OF_AN_ENGINE = 16  # then a new one takes its place: it remembers every word that it has met

STOP = 3
T = TypeVar("T", bound=Sized)
_groups = 0  # encoded by this worker
_counters: Any = None  # shared by the workers: documents, bytes of text, tokens; and whether to stop


@dataclass(frozen=True)
class Job:
    """Shards that one worker encodes at a time. max_bad: how many documents may be bad. format: of examples;
    None: of documents.
    """

    number: int
    shards: list[Shard]
    text_key: str
    work: Path
    max_bad: int
    vocabulary: Vocabulary
    format: str | None = None

    @property
    def name(self) -> str:
        return self.shards[0].name + (
            f" and the {len(self.shards) - 1:,} that follow" if self.shards[1:] else ""
        )

    @property
    def size(self) -> int:
        return sum(shard.size for shard in self.shards)


def start_worker(counters: Any, parent: int) -> None:
    """In a new worker, which ends with the process `parent`. counters: shared by all workers."""
    global _counters
    _counters = counters
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each core
    processes.start_worker(parent)


def _batches(items: Iterator[T | Bad], bad: list[Bad], max_bad: int) -> Iterator[list[T]]:
    """Documents, or examples, to be encoded at once; `bad` gets the others."""
    batch: list[T] = []
    size = 0
    for item in items:
        if isinstance(item, Bad):
            bad.append(item)
            if len(bad) > max_bad:
                return
            continue
        batch.append(item)
        size += len(item)
        if size >= BATCH_BYTES:
            if _counters[STOP]:
                raise InterruptedError("asked to stop")
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


@cache
def _tokenizer(known: Vocabulary) -> Tokenizer:
    tokenizer = open_tokenizer(known)
    assert tokenizer is not None, "the main process has opened it"
    return tokenizer


@cache
def _sizes(known: Vocabulary) -> NDArray[np.int64] | None:
    """Bytes that each token stands for, where they may be others than those of the text."""
    return None if _tokenizer(known).is_exact else np.array(sizes_of(known), dtype=np.int64)


class _Documents:
    """Documents of a group as what its files hold, by their endings: bin, tokens; len, tokens of each
    document, uint32.
    """

    endings: tuple[str, ...] = ("bin", "len")

    def __init__(self, job: Job) -> None:
        self.text_key, self.name = job.text_key, job.name
        self.encoder, self.sizes = _tokenizer(job.vocabulary).encoder(job.number), _sizes(job.vocabulary)

    def read(self, shard: Shard, passed: Counter[str]) -> Iterator[str | Bad]:
        return documents(shard, self.text_key, passed)

    def encode(self, texts: list[str], bad: list[Bad]) -> tuple[dict[str, Any], dict[str, int]]:
        """Content of the files, and counts of it."""
        tokens, lengths = self.encoder.encode(texts, self.name)
        size = sum(map(_bytes_of, texts))
        kept = size if self.sizes is None else int(self.sizes[tokens].sum())
        counts = {"documents": len(texts), "tokens": tokens.size, "bytes": size, "kept_bytes": kept}
        return {"bin": tokens.data, "len": lengths.astype("<u4").data}, counts


class _Examples:
    """As _Documents, of examples: len is as data/segments.py has it, texts what Example.kept is."""

    endings = ("bin", "len", LINES)

    def __init__(self, job: Job) -> None:
        assert job.format is not None, "documents have none"
        self.reader, self.name = readable(READERS[job.format], job.vocabulary), job.name
        self.encoder = ExampleEncoder(_tokenizer(job.vocabulary), job.number, _sizes(job.vocabulary))

    def read(self, shard: Shard, passed: Counter[str]) -> Iterator[Example | Bad]:
        return records(shard, self.reader, passed)

    def encode(self, examples: list[Example], bad: list[Bad]) -> tuple[dict[str, Any], dict[str, int]]:
        return self.encoder.encode(examples, self.name, bad)


def sizes_of_files(described: dict[str, Any], token_bytes: int) -> dict[str, int]:
    """Bytes that each file of a group must have, by its ending. described: by `encode_group`."""
    sizes = {"bin": token_bytes * described["tokens"]}
    sizes["len"] = 4 * described.get("segments", described["documents"])
    if "kept_lines" in described:
        sizes[LINES] = described["kept_lines"]
    return sizes


def encode_group(job: Job) -> dict[str, Any]:
    """Encode a group into files N.bin and so on, which _Documents or _Examples names, described by N.json,
    which is written last.

    With more bad lines than `max_bad` nothing is kept, and the description says so.
    """
    global _groups
    _groups += 1
    if _groups % GROUPS_OF_AN_ENGINE == 0:
        best_engine.cache_clear()
    bad: list[Bad] = []
    passed: dict[str, Any] = {}
    total = Counter({"documents": 0, "tokens": 0, "bytes": 0, "kept_bytes": 0})
    kind: Any = _Documents(job) if job.format is None else _Examples(job)
    targets = {ending: job.work / f"{job.number:06d}.{ending}" for ending in kind.endings}
    parts = {ending: path.with_name(f"{path.name}.part") for ending, path in targets.items()}
    with ExitStack() as stack:
        files = {ending: stack.enter_context(open(path, "wb")) for ending, path in parts.items()}
        for batch in _batches(_items(job, kind, passed), bad, job.max_bad):
            content, counts = kind.encode(batch, bad)
            if len(bad) > job.max_bad:
                break
            for ending, written in content.items():
                files[ending].write(written)
            total.update(counts)
            with _counters.get_lock():
                for place, name in enumerate(("documents", "bytes", "tokens")):
                    _counters[place] += counts[name]
        for file in files.values():
            file.flush()
            sync(file.fileno())
    result = {
        "number": job.number,
        "shards": len(job.shards),
        "bad": len(bad),
        "shown": [asdict(b) for b in bad[:SHOWN_BAD]],
        "passed": passed,
        **total,
        "peak_kib": peak_kib(),
    }
    if len(bad) > job.max_bad:
        for part in parts.values():
            part.unlink()
        return result
    for ending, part in parts.items():
        os.replace(part, targets[ending])
    sync_folder(job.work)
    write_json(job.work / f"{job.number:06d}.json", result)
    return result


def _items(job: Job, kind: Any, passed: dict[str, Any]) -> Iterator[Any]:
    """What all shards of a group hold; `passed` gets a count and the first place for each reason."""
    for shard in job.shards:
        counts: Counter[str] = Counter()
        yield from kind.read(shard, counts)
        for reason, count in counts.items():
            known = passed.setdefault(reason, {"count": 0, "first": shard.name})
            known["count"] += count
