"""Raw corpora as documents: what a user provides, read line by line in bounded memory.

A shard is a file, or a member of a tar (OpenWebText2's form: `*.jsonl.zst` members, one JSON object a line
with the document under `text`). Also read: .jsonl, .ndjson, .json (one object a line) and .txt (one
document), each plain or with .gz, .bz2, .xz, .zst, .parquet, and folders of all these (data/find.py). What
cannot be read comes out as a `Bad` with its place, so that the caller decides how much of it to bear.
"""

from __future__ import annotations

import codecs
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import orjson
import zstandard

from data.find import Bad
from data.streams import DAMAGE, Shard, open_shard, plain_chunks
from errors import UserError
from files import replace_atomically

DOCUMENTS_PER_MEMBER = 512
T = TypeVar("T")
BLANK, CARRIAGE = "blank lines", "carriage returns of CRLF line ends"  # of what is passed over in a shard


def documents(shard: Shard, text_key: str, passed: Counter[str] | None = None) -> Iterator[str | Bad]:
    """A shard's documents in order, with a `Bad` for each that cannot be read; `passed` counts what is left
    out.

    Text can always be encoded: lone surrogates, which JSON can escape, become U+FFFD, as in tiktoken.
    """

    def text(value: dict[str, Any], place: str) -> str | Bad:
        return as_text(_under(value, text_key), text_key, place)

    return records(shard, text, Counter() if passed is None else passed, text_key)


def records(
    shard: Shard,
    read: Callable[[dict[str, Any], str], T | Bad],
    passed: Counter[str],
    text_key: str | None = None,
) -> Iterator[T | Bad]:
    """What `read` makes of the object of each line, or of each row of a table, and its place; a `Bad` for
    each that cannot be read. `passed` counts what is left out.

    text_key: where the text of a document is; None: all columns are read, and no .txt files.
    """
    number = 0
    try:
        with open_shard(shard) as content:
            if shard.kind.startswith(".txt"):
                assert text_key is not None, "a text has no keys"
                text = _whole_text(b"".join(plain_chunks(content, shard.kind)), passed)
                yield read({text_key: text}, shard.name)
                return
            if shard.kind == ".parquet":
                yield from _parquet_rows(shard, content, read, text_key)
                return
            for number, line in enumerate(_lines(plain_chunks(content, shard.kind)), start=1):
                place = f"{shard.name}: line {number}"
                value = _object(line, place)
                if value is None:
                    passed[BLANK] += 1
                else:
                    yield value if isinstance(value, Bad) else read(value, place)
    except DAMAGE as error:
        yield Bad(
            f"{shard.name}: after line {number}" if number else shard.name, f"damaged: {_reason(error)}"
        )
    except PermissionError as error:
        yield Bad(shard.name, f"cannot be read: {error.strerror}")
    except OSError as error:
        raise UserError(f"{shard.name}: {error.strerror or error}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError) and bytes(error.object[:2]) in (
        codecs.BOM_UTF16_LE,
        codecs.BOM_UTF16_BE,
    ):
        return "it is UTF-16 and must be UTF-8 (iconv -f UTF-16 -t UTF-8 converts it)"
    return str(error)


def _whole_text(raw: bytes, passed: Counter[str]) -> str:
    """A file as one document, without a byte order mark and with the line ends of Unix."""
    text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    if "\r\n" in text:
        passed[CARRIAGE] += text.count("\r\n")
        text = text.replace("\r\n", "\n")
    return text


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their line feed; an unfinished last one too."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *lines = chunk.split(b"\n")
        rest.append(first)
        if lines:
            lines.insert(0, b"".join(rest))
            rest = [lines.pop()]
        yield from lines
    if last := b"".join(rest):
        yield last


def _object(line: bytes, place: str) -> dict[str, Any] | Bad | None:
    """None for a blank line."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            return None
        try:
            # takes what orjson is too strict for: lone surrogates, NaN, huge numbers
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            return Bad(place, f"not JSON in UTF-8 ({_reason(error)})")
        except (ValueError, RecursionError) as error:
            spread = (
                "; one object a line is read, `jq -c .` or `jq -c '.[]'` writes that"
                if line.strip() in (b"[", b"{")
                else ""
            )
            return Bad(place, f"not JSON in UTF-8 ({error}){spread}")
    if not isinstance(value, dict):
        return Bad(
            place,
            "not a JSON object"
            + ("; one object a line is read, `jq -c '.[]'` writes that" if isinstance(value, list) else ""),
        )
    return value


def _under(value: Any, text_key: str) -> Any:
    """The value under a key: of exactly that name, else of b within a for a.b; None where there is none."""
    if text_key in value or "." not in text_key:
        return value.get(text_key)
    for key in text_key.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def as_text(text: Any, text_key: str, place: str) -> str | Bad:
    """The value under a key as text that can be encoded."""
    if isinstance(text, bytes):  # a binary column
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return Bad(place, f"the bytes under {text_key!r} are not UTF-8 ({_reason(error)})")
    if not isinstance(text, str):
        return Bad(
            place,
            f"no text under {text_key!r}" if text is None else f"the value under {text_key!r} is no text",
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet_rows(
    shard: Shard, content: IO[bytes], read: Callable[[dict[str, Any], str], T | Bad], text_key: str | None
) -> Iterator[T | Bad]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{shard.name}: reading parquet needs pyarrow; pip install pyarrow") from None
    try:
        # by its path where it has one that pyarrow takes: faster
        file = parquet.ParquetFile(shard.path if not shard.member and shard.path.isprintable() else content)
        names = file.schema_arrow.names
        if text_key is not None and not {text_key, text_key.partition(".")[0]} & set(names):
            yield Bad(shard.name, f"no column {text_key!r}; there are {', '.join(map(repr, names[:9]))}")
            return
        number = 0
        columns = None if text_key is None else [text_key]
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            if not batch.num_columns:
                yield Bad(shard.name, f"no column {text_key!r}")
                return
            for value in batch.to_pylist():
                number += 1
                yield read(value, f"{shard.name}: row {number}")
    except pyarrow.ArrowException as error:
        yield Bad(shard.name, f"damaged: {str(error).splitlines()[0]}")
    except OSError as error:
        if error.errno is not None:
            raise
        yield Bad(shard.name, f"damaged: {str(error).splitlines()[0]}")


def pack(named_texts: Iterator[tuple[str, str]], archive: Path) -> None:
    """Write documents as a tar of zstandard members of JSON lines."""

    def write(path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            lines: list[bytes] = []
            number = 0

            def flush() -> None:
                nonlocal number
                content = zstandard.ZstdCompressor(level=6, write_checksum=True).compress(b"".join(lines))
                member = tarfile.TarInfo(f"{number:05d}.jsonl.zst")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                lines.clear()
                number += 1

            for name, text in named_texts:
                lines.append(json.dumps({"text": text, "meta": {"path": name}}).encode() + b"\n")
                if len(lines) == DOCUMENTS_PER_MEMBER:
                    flush()
            if lines:
                flush()

    archive.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(archive, write)
