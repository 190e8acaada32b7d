"""Documents as they are read from files, and what is said of those that cannot be."""

from collections import Counter
from pathlib import Path

from data.corpus import documents
from data.find import Bad, find_shards
from errors import UserError
from tests.corpora import lines

TEXTS = ["First.", "naïve ☃ 日本語", "last"]


def read(*inputs, text_key="text", **options):
    """Documents, bad places, and what was passed over with its count."""
    found = find_shards([Path(path) for path in inputs], **options)
    texts, bad, passed = [], list(found.bad), Counter(found.passed.counts)
    for shard in found.shards:
        for item in documents(shard, text_key, passed):
            (bad if isinstance(item, Bad) else texts).append(item)
    return texts, bad, dict(passed)


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else lines(content))
    return path


def refusal_of(path):
    try:
        read(path)
    except UserError as error:
        return str(error)
    return "none"
