"""Bytes of a shard as they lie on disk, and what they are uncompressed: gzip, bzip2, xz and zstandard, in
bounded memory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import zstandard

READ_BYTES = 1 << 20
LONGEST_WINDOW = 1 << 31  # of a zstandard frame, what `zstd --long=31` makes
DAMAGE = (
    zstandard.ZstdError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    UnicodeDecodeError,
    tarfile.TarError,
)


def printable(name: str) -> str:
    """A file's name for a line of text: bytes that are no UTF-8, and characters that a terminal would
    obey, are escaped.
    """
    if name.isprintable():
        return name
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


@dataclass(frozen=True)
class Shard:
    """Part of a corpus that is read as a whole: bytes [offset, offset + size) of a file."""

    path: str
    member: str  # name within a tar, or empty
    kind: str
    offset: int
    size: int
    sparse: bool = False  # a member of a tar that is stored without its holes: `offset` is that of its header

    @property
    def name(self) -> str:
        return printable(f"{self.path}: {self.member}" if self.member else self.path)


class _Window(io.RawIOBase):
    """Bytes [offset, offset + size) of a file, as a file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.place = file, offset, size, 0
        file.seek(offset)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self.place = max(0, place + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence])
        self.file.seek(self.offset + self.place)
        return self.place

    def readinto(self, buffer: Any) -> int:
        left = max(0, self.size - self.place)
        count = self.file.readinto(memoryview(buffer)[:left]) if left else 0  # type: ignore[attr-defined]
        if left and len(buffer) and not count:
            raise EOFError("the file ends before its entry does")
        self.place += count
        return count


@contextmanager
def open_shard(shard: Shard) -> Iterator[IO[bytes]]:
    """A shard's bytes as they lie on disk, the holes of a sparse one filled."""
    with open(shard.path, "rb", buffering=0) as file:
        if not shard.sparse:
            yield io.BufferedReader(_Window(file, shard.offset, shard.size), READ_BYTES)
            return
        file.seek(shard.offset)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            member = tar.next()
            content = tar.extractfile(member) if member else None
            if content is None:
                raise tarfile.ReadError("the entry is gone")
            yield content


def plain_chunks(content: IO[bytes], kind: str) -> Iterator[bytes]:
    """Uncompressed bytes, by the last suffix of `kind`.

    Raises one of DAMAGE, EOFError where a stream is cut short.
    """
    if kind.endswith(".zst"):
        yield from _zstandard_chunks(content)
    elif kind.endswith(".bz2"):
        yield from _streams(content, bz2.BZ2Decompressor)
    elif kind.endswith(".xz"):
        yield from _streams(content, lzma.LZMADecompressor)
    else:
        plain = gzip.GzipFile(fileobj=content) if kind.endswith(".gz") else content
        while chunk := plain.read(READ_BYTES):
            yield chunk


def _streams(content: IO[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Of one or more bzip2 or xz streams. The modules' own files take a damaged second stream for the end."""
    decoder, data = None, b""
    while data or (data := content.read(READ_BYTES)):
        if decoder is None:
            data = data.lstrip(b"\0")  # padding between streams
            if not data:
                continue
            decoder = new()
        try:
            yield decoder.decompress(data, READ_BYTES)
            while not decoder.eof and not decoder.needs_input:
                yield decoder.decompress(b"", READ_BYTES)
        except OSError as error:  # what bzip2 says of damage
            raise EOFError(str(error)) from None
        data, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None:
        raise EOFError("the last stream is cut short")


def _zstandard_chunks(content: IO[bytes]) -> Iterator[bytes]:
    """Of a stream of one or more frames."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW)
    frame, unfinished = decompressor.decompressobj(), False
    while chunk := content.read(READ_BYTES):
        while chunk:
            yield frame.decompress(chunk)
            unfinished, chunk = not frame.eof, frame.unused_data
            if frame.eof:
                frame = decompressor.decompressobj()
    if unfinished:
        raise EOFError("the last zstandard frame is cut short")
