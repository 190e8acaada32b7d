"""Raw corpora as shards of documents: what a user brings, read line by line in bounded memory.

A shard is a file, or a member of a tar (OpenWebText2's form: `*.jsonl.zst` members, one JSON object a line with the
document under `text`). Also read: .jsonl, .jsonl.gz, .txt (one document) and .parquet files, and folders of all these.
What cannot be read comes out as a `Bad` with its place, so that the caller decides how much of it to bear.
"""

from __future__ import annotations

import gzip
import io
import json
import sysconfig
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import orjson
import zstandard

from errors import UserError
from files import replace_atomically

READ_BYTES = 1 << 20
END_OF_TAR = 1024  # a tar ends with two blocks of zeros
DOCUMENTS_PER_MEMBER = 512
KINDS = (".jsonl.zst", ".jsonl.gz", ".jsonl", ".txt", ".parquet")


@dataclass(frozen=True)
class Shard:
    """Part of a corpus that is read as a whole: bytes [offset, offset + size) of a file."""

    path: str
    member: str  # name within a tar, or empty
    kind: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.path}: {self.member}" if self.member else self.path


@dataclass(frozen=True)
class Bad:
    """Something that is not a document, and where it stands."""

    place: str
    reason: str


def kind_of(name: str) -> str | None:
    return next((kind for kind in KINDS if name.lower().endswith(kind)), None)


def find_shards(inputs: list[Path]) -> tuple[list[Shard], list[Bad]]:
    """The shards of files, tars and folders, in order of name, and what in them cannot be one. Raises UserError."""
    shards: list[Shard] = []
    bad: list[Bad] = []
    for given in inputs:
        if not given.exists():
            raise UserError(f"--input {given}: no such file or folder")
        for path in sorted(p for p in given.rglob("*") if p.is_file()) if given.is_dir() else [given]:
            if path.name.lower().endswith(".tar"):
                members, odd = tar_shards(path)
                shards += members
                bad += odd
            elif (kind := kind_of(path.name)) is not None:
                shards.append(Shard(str(path), "", kind, 0, path.stat().st_size))
            elif not given.is_dir():
                raise UserError(f"--input {path}: not a .tar or one of {', '.join(KINDS)}")
    if not shards and not bad:
        raise UserError(f"--input {', '.join(map(str, inputs))}: nothing to read; there must be a .tar or one of {', '.join(KINDS)}")
    return shards, bad


def tar_shards(path: Path) -> tuple[list[Shard], list[Bad]]:
    """Members of an uncompressed tar, by reading its headers alone. Raises UserError for a damaged one."""
    shards, bad = [], []
    try:
        with open(path, "rb") as file:
            file.seek(-min(END_OF_TAR, file.seek(0, io.SEEK_END)), io.SEEK_END)
            if file.read() != bytes(END_OF_TAR):
                raise UserError(f"{path} is damaged or cut short: it has no end-of-archive mark")
        end = 0
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.size < 0:  # tarfile would read the same entries for ever
                    raise tarfile.ReadError(f"the entry {member.name!r} has a negative size")
                end = member.offset_data + -(-(member.size if member.isreg() else 0) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                pure = PurePosixPath(member.name)
                if pure.is_absolute() or ".." in pure.parts:
                    bad.append(Bad(f"{path}: {member.name}", "the entry lies outside the archive's folder"))
                elif member.issym() or member.islnk():
                    bad.append(Bad(f"{path}: {member.name}", "the entry is a link"))
                elif member.isreg() and (kind := kind_of(member.name)) is not None:
                    shards.append(Shard(str(path), member.name, kind, member.offset_data, member.size))
        with open(path, "rb") as file:  # a damaged header ends the list of members as if it were the last
            file.seek(end)
            while rest := file.read(READ_BYTES):
                if rest.strip(b"\0"):
                    raise UserError(f"{path} is damaged: there is more after its last readable entry")
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    return shards, bad


class _Window(io.RawIOBase):
    """Bytes [offset, offset + size) of a file, as a file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self.file, self.left = file, size
        file.seek(offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(memoryview(buffer)[:self.left]) if self.left else 0  # type: ignore[attr-defined]
        if self.left and not count:
            raise EOFError("the file ends before its entry does")
        self.left -= count
        return count


@contextmanager
def open_shard(shard: Shard) -> Iterator[IO[bytes]]:
    """A shard's bytes as they lie on disk."""
    with open(shard.path, "rb", buffering=0) as file:
        yield io.BufferedReader(_Window(file, shard.offset, shard.size), READ_BYTES)


def plain_chunks(content: IO[bytes], kind: str) -> Iterator[bytes]:
    """Uncompressed bytes of a .jsonl, .jsonl.gz or .jsonl.zst. Raises EOFError where a frame is cut short."""
    if kind == ".jsonl.zst":
        yield from zstandard_chunks(content)
        return
    plain = gzip.GzipFile(fileobj=content) if kind == ".jsonl.gz" else content
    while chunk := plain.read(READ_BYTES):
        yield chunk


def zstandard_chunks(content: IO[bytes]) -> Iterator[bytes]:
    """Of a stream of one or more frames."""
    frame, unfinished = zstandard.ZstdDecompressor().decompressobj(), False
    while chunk := content.read(READ_BYTES):
        while chunk:
            yield frame.decompress(chunk)
            unfinished, chunk = not frame.eof, frame.unused_data
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
    if unfinished:
        raise EOFError("the last zstandard frame is cut short")


def documents(shard: Shard, text_key: str) -> Iterator[str | Bad]:
    """A shard's documents in order, with a `Bad` in the place of each that cannot be read.

    Text is such that it can be encoded: lone surrogates, which JSON can escape, become U+FFFD as tiktoken has them.
    """
    number = 0
    try:
        with open_shard(shard) as content:
            if shard.kind == ".txt":
                yield content.read().decode("utf-8")
                return
            if shard.kind == ".parquet":
                yield from _parquet_documents(shard, content, text_key)
                return
            rest: list[bytes] = []
            for chunk in plain_chunks(content, shard.kind):
                first, *lines = chunk.split(b"\n")
                rest.append(first)
                if lines:
                    lines.insert(0, b"".join(rest))
                    rest = [lines.pop()]
                for line in lines:
                    number += 1
                    yield _document(line, text_key, shard, number)
            last = b"".join(rest)
            if last:
                number += 1
                yield _document(last, text_key, shard, number)
    except (zstandard.ZstdError, zlib.error, gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        yield Bad(f"{shard.name}: after line {number}" if number else shard.name, f"damaged: {error}")
    except OSError as error:
        raise UserError(f"{shard.name}: {error.strerror or error}") from None


def _document(line: bytes, text_key: str, shard: Shard, number: int) -> str | Bad:
    place = f"{shard.name}: line {number}"
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(line.decode())  # takes what orjson is too strict for: lone surrogates, NaN, huge numbers
        except (ValueError, RecursionError) as error:
            return Bad(place, f"not JSON in UTF-8 ({error})")
    if not isinstance(value, dict):
        return Bad(place, "not a JSON object")
    return _text(value.get(text_key), text_key, place)


def _text(text: Any, text_key: str, place: str) -> str | Bad:
    if not isinstance(text, str):
        return Bad(place, f"no text under {text_key!r}" if text is None else f"the value under {text_key!r} is no text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet_documents(shard: Shard, content: IO[bytes], text_key: str) -> Iterator[str | Bad]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{shard.name}: reading parquet needs pyarrow; pip install pyarrow") from None
    try:
        # pyarrow seeks, so a member of a tar is read whole
        source = shard.path if not shard.member else pyarrow.BufferReader(content.read())
        file = parquet.ParquetFile(source)
        if text_key not in file.schema_arrow.names:
            yield Bad(shard.name, f"no column {text_key!r}")
            return
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[text_key]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield _text(text, text_key, f"{shard.name}: row {number}")
    except pyarrow.ArrowException as error:
        yield Bad(shard.name, f"damaged: {str(error).splitlines()[0]}")


def stdlib_documents() -> Iterator[tuple[str, str]]:
    """Relative path and text of each module of Python's own library, in order of path; undecodable files are left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if {"site-packages", "dist-packages", "__pycache__"} & set(relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip():
            yield relative.as_posix(), text


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
