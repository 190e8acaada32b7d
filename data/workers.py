"""One group of shards as tokens, in a worker process of data.tokenize.

ProcessPoolExecutor(workers, context, start_worker, (counters, os.getpid())).submit(encode_group, job)
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.corpus import documents
from data.encode import best_engine
from data.find import SHOWN_BAD, Bad
from data.streams import Shard
from data.tokenizer import Tokenizer, open_tokenizer, sizes_of
from data.vocabulary import Vocabulary
from files import sync, sync_folder, write_json
from processes import die_with, peak_kib

BATCH_BYTES = 1 << 21  # text encoded at once by a worker
GROUPS_OF_AN_ENGINE = 16  # then a new one takes its place: it remembers every word that it has met

STOP = 3
_groups = 0  # encoded by this worker
_counters: Any = None  # shared by the workers: documents, bytes of text, tokens; and whether to stop


@dataclass(frozen=True)
class Job:
    """Shards that one worker encodes at a time. max_bad: how many documents may be bad."""

    number: int
    shards: list[Shard]
    text_key: str
    work: Path
    max_bad: int
    vocabulary: Vocabulary

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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
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
                raise InterruptedError("asked to stop")
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


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


def encode_group(job: Job) -> dict[str, Any]:
    """Encode a group into N.bin (tokens) and N.len (tokens of each document, uint32), described by N.json,
    which is written last.

    With more bad lines than `max_bad` nothing is kept, and the description says so.
    """
    global _groups
    _groups += 1
    if _groups % GROUPS_OF_AN_ENGINE == 0:
        best_engine.cache_clear()
    bad: list[Bad] = []
    passed: dict[str, Any] = {}
    total = {"documents": 0, "tokens": 0, "bytes": 0, "kept_bytes": 0, "largest_token": 0}
    encoder = _tokenizer(job.vocabulary).encoder(job.number)
    sizes = _sizes(job.vocabulary)
    targets = [job.work / f"{job.number:06d}.{ending}" for ending in ("bin", "len")]
    parts = [path.with_name(f"{path.name}.part") for path in targets]
    with open(parts[0], "wb") as tokens_file, open(parts[1], "wb") as lengths_file:
        for texts in _batches(_documents(job, passed), bad, job.max_bad):
            tokens, lengths = encoder.encode(texts, job.name)
            tokens_file.write(tokens.data)
            lengths_file.write(lengths.astype("<u4").data)
            size = sum(map(_bytes_of, texts))
            kept = size if sizes is None else int(sizes[tokens].sum())
            added = {"documents": len(texts), "tokens": tokens.size, "bytes": size, "kept_bytes": kept}
            for name, value in added.items():
                total[name] += value
            total["largest_token"] = max(total["largest_token"], int(tokens.max(initial=0)))
            with _counters.get_lock():
                for place, value in enumerate((len(texts), size, tokens.size)):
                    _counters[place] += value
        for file in (tokens_file, lengths_file):
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
        for part in parts:
            part.unlink()
        return result
    for part, target in zip(parts, targets, strict=True):
        os.replace(part, target)
    sync_folder(job.work)
    write_json(job.work / f"{job.number:06d}.json", result)
    return result


def _documents(job: Job, passed: dict[str, Any]) -> Iterator[str | Bad]:
    """The documents of all shards of a group; `passed` gets a count and the first place for each reason."""
    for shard in job.shards:
        counts: Counter[str] = Counter()
        yield from documents(shard, job.text_key, counts)
        for reason, count in counts.items():
            known = passed.setdefault(reason, {"count": 0, "first": shard.name})
            known["count"] += count
