"""Character-level datasets: every character of the text is a token; the last tenth of the text
(--val-fraction) is for validation.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.bins import META, TOKEN, WORK
from data.corpus import documents
from data.find import SHOWN_BAD, Bad, Found, find_shards
from errors import UserError
from files import write_atomically, write_json

VAL_SHARE = 0.1
LARGEST_TEXT = 1 << 30  # characters; the text is held in memory


def tokenize_characters(
    inputs: list[Path],
    folder: Path,
    text_key: str,
    max_bad: int,
    say: Callable[[str], None],
    include: Sequence[str] = (),
    val_fraction: float | None = None,
) -> dict[str, Any]:
    """Prepare a folder from small text files. Returns what meta.json holds. Raises UserError."""
    found = find_shards(inputs, include)
    text = "\n".join(_texts(found, text_key, max_bad))
    characters, tokens = _encoded(text)
    cut = min(max(int(len(tokens) * (1 - (val_fraction or VAL_SHARE))), 1), len(tokens) - 1)
    splits = {"val": tokens[cut:], "train": tokens[:cut]}
    counts = found.passed.counts
    passed_over = {"passed_over": dict(sorted(counts.items()))} if counts else {}
    meta = {
        "tokenizer": "char",
        "characters": "".join(characters),
        "bytes": len(text.encode(errors="surrogatepass")),
        "bad_lines": len(found.bad),
        **passed_over,
        "splits": {name: _facts(part) for name, part in splits.items()},
    }
    _write(folder, splits, meta)
    for line in found.lines():
        say(line)
    for item in found.bad[:SHOWN_BAD]:
        say(f"left out: {item.place}: {item.reason}")
    say(
        f"{len(tokens):,} characters, {len(characters)} different ones: train with --vocab_size"
        f" {len(characters)} or more"
    )
    return meta


def _texts(found: Found, text_key: str, max_bad: int) -> list[str]:
    """Every document's text; adds what is bad or passed over to `found`. Raises UserError."""
    texts = []
    for shard in found.shards:
        counts: Counter[str] = Counter()
        for item in documents(shard, text_key, counts):
            if isinstance(item, Bad):
                found.bad.append(item)
            else:
                texts.append(item)
        for reason, count in counts.items():
            found.passed.add(reason, shard.name, count)
    if len(found.bad) > max_bad:
        lines = [f"{item.place}: {item.reason}" for item in found.bad[:SHOWN_BAD]]
        raise UserError("\n".join([*lines, f"{len(found.bad)} bad lines, --max-bad is {max_bad}"]))
    return texts


def _encoded(text: str) -> tuple[list[str], NDArray[np.uint16]]:
    """The vocabulary, and the number in it of each character of the text. Raises UserError."""
    if not 10 <= len(text) <= LARGEST_TEXT:
        raise UserError(
            f"a character-level dataset takes 10 to {LARGEST_TEXT:,} characters, not {len(text):,}"
        )
    characters = sorted(set(text))
    if len(characters) > np.iinfo(TOKEN).max:
        raise UserError(f"{len(characters):,} different characters are too many for 16-bit tokens")
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    vocabulary = np.array([ord(character) for character in characters], dtype="<u4")
    return characters, np.searchsorted(vocabulary, points).astype(TOKEN)


def _facts(part: NDArray[np.uint16]) -> dict[str, Any]:
    """What meta.json says of a split."""
    return {
        "documents": 1,
        "tokens": int(part.size),
        "largest_token": int(part.max()),
        "sha256": hashlib.sha256(part.tobytes()).hexdigest(),
    }


def _write(folder: Path, splits: dict[str, NDArray[np.uint16]], meta: dict[str, Any]) -> None:
    """Raises UserError where the folder cannot be written."""
    try:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        (folder / "train.bin").unlink(missing_ok=True)  # without it nothing takes a half-made dataset for one
        write_atomically(folder / "val.bin", splits["val"].tobytes())
        write_json(folder / META, meta)
        write_atomically(folder / "train.bin", splits["train"].tobytes())
        with suppress(OSError):  # of another tokenizer, with finished groups
            (folder / WORK).rmdir()
    except OSError as error:
        raise UserError(f"cannot prepare {folder}: {error.strerror or error}") from None
