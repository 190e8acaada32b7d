"""The shards of files, tars and folders: what is read, in which order, and what is passed over and why.

Hidden entries are passed over, linked folders are followed once, and a file is read once however often it is
named.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from data.streams import READ_BYTES, Shard, printable
from errors import UserError

END_OF_TAR = 1024  # a tar ends with two blocks of zeros
FORMS = (".jsonl", ".ndjson", ".txt", ".parquet", ".json")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
READ = f"{', '.join(FORMS)}, the texts among them also with {', '.join(COMPRESSIONS)}"
SHOWN_REASONS = 10
SHOWN_BAD = 5  # documents
ARCHIVES = (
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz",
    ".tbz2",
    ".tar.xz",
    ".txz",
    ".tar.zst",
    ".tzst",
    ".zip",
    ".7z",
    ".rar",
)


@dataclass(frozen=True)
class Bad:
    """Something that is not a document, and where it stands."""

    place: str
    reason: str


@dataclass
class Passed:
    """What is passed over: for each reason how often, and the place of the first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str, count: int = 1) -> None:
        self.counts[reason] += count
        self.first.setdefault(reason, place)

    def lines(self) -> list[str]:
        found = self.counts.most_common()
        lines = [
            f"passed over: {count:,} {reason}, the first is {self.first[reason]}"
            for reason, count in found[:SHOWN_REASONS]
        ]
        if rest := found[SHOWN_REASONS:]:
            lines.append(f"passed over: {sum(count for _, count in rest):,} more, of {len(rest)} other kinds")
        return lines


@dataclass
class Found:
    shards: list[Shard] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    passed: Passed = field(default_factory=Passed)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What the user is to know of all this."""
        return [*self.notes, *self.passed.lines()]


def kind_of(name: str, named: bool = True) -> str | None:
    """The format of a file and its compression, by its name. named: it was asked for by name, as plain .json
    must be.
    """
    name = name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    form = next((form for form in FORMS if name.removesuffix(compression).endswith(form)), None)
    if (
        form is None
        or (form == ".parquet" and compression)
        or (form == ".json" and not compression and not named)
    ):
        return None
    return form + compression


def _why_not(name: str) -> str:
    """Why a name is of no kind that is read."""
    lower = name.lower()
    if archive := next((ending for ending in ARCHIVES if lower.endswith(ending)), None):
        return f"{archive} archives (unpack them first)"
    if lower.endswith(".json"):
        return ".json files (read where --input or --include names them)"
    suffix = "".join(
        PurePosixPath(lower).suffixes[-2:]
        if lower.endswith(COMPRESSIONS)
        else PurePosixPath(lower).suffixes[-1:]
    )
    return f"{printable(suffix)} files" if suffix else "files without a suffix"


def _is_hidden(name: str) -> bool:
    """.ipynb_checkpoints, the ._ files of macOS, what editors and synchronisers keep."""
    return name.startswith(".") or name == "__MACOSX"


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path, or the last part of it, matches a pattern; * stands for any characters, / too."""
    return any(
        fnmatchcase(name, pattern) or fnmatchcase(PurePosixPath(name).name, pattern) for pattern in patterns
    )


class Folders:
    """Walks folders, each once: first its own files, then linked ones that have not been visited."""

    def __init__(self, found: Found) -> None:
        self.found, self.passed = found, found.passed
        self.visited: set[str] = set()

    def files(self, given: Path) -> list[str]:
        """Paths of the files below a folder, its own before linked ones; the caller puts them
        in order.
        """
        real = os.path.realpath(given)
        if real in self.visited:
            self.passed.add("folders named twice", printable(str(given)))
            return []
        links: list[str] = []
        files = list(self._scan(str(given), real, links))
        for link in links:  # grows by the links within linked folders
            files += self._linked(link, real, links)
        return files

    def _scan(self, top: str, top_real: str, links: list[str]) -> Iterator[str]:
        waiting = [(top, top_real)]  # no recursion: folders may be nested more deeply than Python's calls
        while waiting:
            folder, real = waiting.pop()
            self.visited.add(real)
            try:
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                self.found.bad.append(Bad(printable(folder), f"the folder cannot be read: {error.strerror}"))
                continue
            for entry in entries:
                path = entry.name if folder == "." else os.path.join(folder, entry.name)
                if _is_hidden(entry.name):
                    self.passed.add("hidden files and folders", printable(path))
                elif entry.is_symlink():
                    links.append(path)
                elif entry.is_dir():
                    inner = os.path.join(real, entry.name)
                    if inner in self.visited:
                        self.passed.add("folders named twice", printable(path))
                    else:
                        waiting.append((path, inner))
                elif entry.is_file():
                    yield path
                else:
                    self.passed.add("pipes, sockets and devices", printable(path))

    def _linked(self, link: str, root: str, links: list[str]) -> Iterator[str]:
        real = os.path.realpath(link)
        try:
            mode = os.stat(link).st_mode
        except OSError as error:
            self.found.bad.append(Bad(printable(link), f"a link to {printable(real)}: {error.strerror}"))
            return
        if stat.S_ISREG(mode):
            yield link
        elif not stat.S_ISDIR(mode):
            self.passed.add("pipes, sockets and devices", printable(link))
        elif real in self.visited:
            self.passed.add("links to folders that are read already", printable(link))
        elif os.path.commonpath([real, root]) == real:
            self.passed.add("links to a folder above", printable(link))
        else:
            yield from self._scan(link, real, links)


def find_shards(inputs: list[Path], include: Sequence[str] = ()) -> Found:
    """The shards of files, tars and folders, in order of name, and what in them cannot be one. Raises
    UserError.

    include: patterns; of folders and tars only what matches one is read, and all members of a tar that itself
    matches.
    """
    found = Found()
    folders = Folders(found)
    seen: dict[object, str] = {}
    for given in inputs:
        shown = printable(str(given))
        if not given.exists():
            raise UserError(f"--input {shown}: no such file or folder")
        is_folder = given.is_dir()
        if not is_folder and not given.is_file():
            raise UserError(f"--input {shown}: a pipe, socket or device; it must be a file or a folder")
        for path in sorted(
            folders.files(given) if is_folder else [str(given)], key=lambda path: path.split(os.sep)
        ):
            relative = os.path.relpath(path, given) if is_folder and include else os.path.basename(path)
            chosen = not is_folder or not include or matches(relative, include)
            kind = (
                ".tar"
                if path.lower().endswith(".tar")
                else kind_of(path, named=not is_folder or bool(include))
            )
            if not chosen and kind != ".tar":
                found.passed.add("files that match no --include", printable(path))
            elif kind is None:
                if not is_folder:
                    raise UserError(f"--input {shown}: not a .tar or one of {READ}")
                found.passed.add(_why_not(os.path.basename(path)), printable(path))
            elif not _is_new(
                path, seen, found.passed
            ):  # what is passed over under one name may be read under another
                continue
            elif kind == ".tar":
                tar_shards(Path(path), found, () if is_folder and chosen else include)
            else:
                _add(found, Shard(path, "", kind, 0, os.stat(path).st_size))
    if not found.shards and not found.bad:
        names = ", ".join(printable(str(given)) for given in inputs)
        raise UserError(
            "\n".join(
                [
                    *found.passed.lines(),
                    f"--input {names}: nothing to read; there must be a .tar or one of {READ}",
                ]
            )
        )
    _tell_twins(found)
    return found


def _is_new(path: str, seen: dict[object, str], passed: Passed) -> bool:
    """Whether a file has not been found under this or another name: by its resolved path, or by its inode
    where it has several names.
    """
    status = os.stat(path)
    keys: list[object] = [os.path.realpath(path)]
    if status.st_nlink > 1:
        keys.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    first = next((seen[key] for key in keys if key in seen), None)
    if first is not None:
        passed.add("files named twice", f"{printable(path)}, which is {printable(first)}")
        return False
    seen.update(dict.fromkeys(keys, path))
    return True


def _add(found: Found, shard: Shard) -> None:
    if not shard.size and not shard.kind.startswith(".txt"):  # no bytes of text are a document, of nothing
        found.passed.add("empty files", shard.name)
    else:
        found.shards.append(shard)


def _tell_twins(found: Found) -> None:
    """Name files that are beside a compressed or plain form of their own: both are read."""
    met: dict[str, Shard] = {}
    twins = []
    for shard in found.shards:
        plain = shard.name.removesuffix(
            next((ending for ending in COMPRESSIONS if shard.kind.endswith(ending)), "")
        )
        other = met.setdefault(plain, shard)
        if other is not shard:
            twins.append(f"{other.name} and {shard.name}")
    if twins:
        found.notes.append(
            f"note: {len(twins):,} files differ from another in compression alone, and both are read"
            f" (--include chooses): {twins[0]}"
        )


def tar_shards(path: Path, found: Found, include: Sequence[str] = ()) -> None:
    """Members of an uncompressed tar, or of several in one file, by reading the headers alone.

    Raises UserError for a damaged one.
    """
    shown = printable(str(path))
    try:
        with open(path, "rb") as file:
            file.seek(-min(END_OF_TAR, file.seek(0, io.SEEK_END)), io.SEEK_END)
            if file.read() != bytes(END_OF_TAR):
                raise UserError(f"{shown} is damaged or cut short: it has no end-of-archive mark")
            begin: int | None = 0
            while begin is not None:
                file.seek(begin)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for shard in _members(tar, path, found, include):
                        _add(found, shard)
                    end = tar.offset
                begin = _next_archive(file, end)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shown} is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"{shown}: {error.strerror or error}") from None


def _next_archive(file: io.BufferedReader, end: int) -> int | None:
    """Where another archive begins behind the end of one; None at the end of the file.

    A damaged header ends the list of members as if it were the last, but not with an end-of-archive mark.
    """
    place = file.seek(end)
    while chunk := file.read(READ_BYTES):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        place += zeros
        if zeros < len(chunk):
            if place - end < END_OF_TAR or place % tarfile.BLOCKSIZE:
                raise tarfile.ReadError("there is more after its last readable entry")
            return place
    return None


def _members(tar: tarfile.TarFile, path: Path, found: Found, include: Sequence[str]) -> list[Shard]:
    """Of one archive, the last of each name, as unpacking it would leave them."""
    shards: dict[str, Shard] = {}
    for member in tar:
        if member.size < 0:  # tarfile would read the same entries for ever
            raise tarfile.ReadError(f"the entry {printable(member.name)!r} has a negative size")
        pure = PurePosixPath(member.name)
        place = printable(f"{path}: {member.name}")
        if pure.is_absolute() or ".." in pure.parts:
            found.bad.append(Bad(place, "the entry lies outside the archive's folder"))
        elif any(map(_is_hidden, pure.parts)):
            found.passed.add("hidden files and folders", place)
        elif member.issym() or member.islnk():
            found.bad.append(Bad(place, "the entry is a link"))
        elif member.isdir():
            continue
        elif not member.isreg():
            found.passed.add("pipes, sockets and devices", place)
        elif include and not matches(str(pure), include):
            found.passed.add("files that match no --include", place)
        elif (kind := kind_of(pure.name, named=bool(include))) is None:
            found.passed.add(_why_not(pure.name), place)
        else:
            if str(pure) in shards:
                found.passed.add(
                    "entries that a later one of the same name replaces", shards.pop(str(pure)).name
                )
            begin = member.offset if member.issparse() else member.offset_data
            shards[str(pure)] = Shard(str(path), member.name, kind, begin, member.size, member.issparse())
    return list(shards.values())
