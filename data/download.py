"""Download OpenWebText2 (28 GB, one tar) and GPT-2's BPE ranks, on a machine with internet.

    python -m data.download                   # asks; Enter means both; without a terminal the ranks alone
    python -m data.download --full            # both
    python -m data.download --bpe             # the ranks alone
    python -m data.download --check           # verify the existing download
    python -m data.download --reset           # delete the download, after asking
    python -m data.download --reset --full    # delete download, token bins and caches, after asking;
                                              # then download again
    python -m data.download --full --source DIR|URL [--sha256 HEX]

An interrupted download is resumed. The tar appears under its final name only when its size and SHA-256 are
those that its source states.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from config.programs import Arguments, guarded
from data.bins import DEFAULT_DATA_DIR, META, SPLITS, WORK, dataset_folder
from data.bpe import cache_folder, gpt2
from data.tokenize import RAW_OWT2, say_now
from errors import UserError
from files import load_json, remove_folder, sync, sync_folder, write_json

HUB_REPOSITORY = "segyges/OpenWebText2"
READ_BYTES = 1 << 20
ATTEMPTS = 8  # in a row without a byte
RETRIED = (401, 403, 408, 429)  # an expired redirect, a slow or a busy server
TIMEOUT_SECONDS = 60
STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
MARGIN_BYTES = 1 << 28  # kept free beside the download


@dataclass(frozen=True)
class Origin:
    """Where the tar comes from, and what its source says of it."""

    address: str
    size: int | None
    sha256: str | None


def hub_origin() -> Origin:
    """The tar in its dataset repository on the Hugging Face hub, with the size and SHA-256 that the hub
    states.
    """
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        # the address that leads to the file, not the signed one behind it, which expires
        url = hf_hub_url(HUB_REPOSITORY, RAW_OWT2, repo_type="dataset")
        stated = get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # the hub's client raises what its HTTP library raises
        message = (str(error).splitlines() or [""])[0][:150]
        raise UserError(
            f"the hub cannot be reached ({type(error).__name__}: {message}); try on a node with internet, "
            "or fetch the file elsewhere and give --source DIR"
        ) from None
    return Origin(url, stated.size, as_sum((stated.etag or "").strip('"')))


def source_origin(source: str, sha256: str | None) -> Origin:
    """From a folder, a file, or an http(s) address of either.

    Where no sum is given, a `<file>.sha256` beside it is read.
    """
    if urlsplit(source).scheme in ("http", "https"):
        address = source if source.endswith(".tar") else f"{source.rstrip('/')}/{RAW_OWT2}"
        return Origin(address, None, sha256 or remote_sum(address))
    path = Path(source)
    path = path / RAW_OWT2 if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"--source {source}: no {RAW_OWT2} there")
    beside = path.with_name(f"{path.name}.sha256")
    return Origin(
        str(path),
        path.stat().st_size,
        sha256 or (as_sum(beside.read_text(errors="replace")) if beside.is_file() else None),
    )


def as_sum(text: str) -> str | None:
    """A SHA-256 in hexadecimal from the beginning of a text, or None."""
    found = re.match(r"\s*([0-9a-f]{64})(?![0-9a-z])", text.lower())
    return found.group(1) if found else None


def remote_sum(address: str) -> str | None:
    """The sum beside a file, or None where there is none.

    Raises UserError where that cannot be found out.
    """
    for attempt in range(ATTEMPTS):
        time.sleep(min(5.0, 0.05 * 2**attempt) if attempt else 0)
        try:
            with urllib.request.urlopen(f"{address}.sha256", timeout=TIMEOUT_SECONDS) as answer:
                return as_sum(answer.read(1000).decode(errors="replace"))
        except urllib.error.HTTPError as error:
            if error.code in (403, 404, 410):
                return None
        except (OSError, http.client.HTTPException):
            pass
    raise UserError(f"{address}.sha256 cannot be read; give the sum by --sha256")


def open_from(address: str, place: int) -> tuple[IO[bytes], int, int | None]:
    """The content from a byte on: the stream, the byte at which it really begins, and the file's size where
    known.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        file = open(address, "rb")  # noqa: SIM115  # closed by the caller
        file.seek(place)
        return file, place, os.fstat(file.fileno()).st_size
    request = urllib.request.Request(address, headers={"Range": f"bytes={place}-"} if place else {})
    answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    length = answer.headers.get("Content-Length")
    begin = place if answer.status == 206 else 0
    return answer, begin, begin + int(length) if length and length.isdigit() else None


def chunks(stream: IO[bytes]) -> Iterator[bytes]:
    # read1: what has come is kept when the rest does not
    while chunk := stream.read1(READ_BYTES):  # type: ignore[attr-defined]
        yield chunk


def file_sum(path: Path, title: str) -> str:
    digest = hashlib.sha256()
    with (
        open(path, "rb") as file,
        tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=title, disable=not sys.stderr.isatty()
        ) as bar,
    ):
        for chunk in chunks(file):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def fetch(origin: Origin, target: Path) -> None:
    """Download the tar to `target`, resuming an earlier attempt. Raises UserError."""
    part = target.with_name(f"{target.name}.part")
    try:
        size = receive(origin, part)
    except BaseException:
        if part.exists() and not part.stat().st_size:
            part.unlink()
        raise
    publish(part, target, origin, size)


class Transfer:
    """A file that is being filled: its first `place` bytes are there, of `size` (None: not known yet)."""

    def __init__(self, origin: Origin, part: Path, file: IO[bytes], bar: Any) -> None:
        self.origin, self.part, self.file, self.bar = origin, part, file, bar
        self.place, self.size = file.tell(), origin.size

    @property
    def is_complete(self) -> bool:
        return self.size is not None and self.place >= self.size

    def _empty(self) -> None:
        self.file.truncate(0)
        self.bar.update(-self.place)
        self.place = 0

    def _request(self) -> None:
        """Read from `place` to the end, or until the connection breaks."""
        stream, begin, whole = open_from(self.origin.address, self.place)
        with stream:
            if self.size is None and whole is not None:
                need_space(self.part.parent, max(0, whole - self.place))
                self.size = whole
            if begin != self.place:  # the server cannot continue
                self._empty()
            for chunk in chunks(stream):
                self.file.write(chunk)
                self.place += len(chunk)
                self.bar.update(len(chunk))
        if self.size is None:
            self.size = self.place

    def attempt(self) -> None:
        """One request; an error that may pass is ignored. Raises UserError for the others."""
        try:
            self._request()
        except urllib.error.HTTPError as error:
            # nothing from here on: the file is complete, or these are the bytes of another one
            if error.code == 416 and self.place:
                self.size = int((error.headers.get("Content-Range") or "").rpartition("/")[2] or -1)
                if self.size != self.place:
                    self._empty()
                    self.size = self.origin.size
            elif error.code < 500 and error.code not in RETRIED:
                raise UserError(f"{self.origin.address}: HTTP {error.code} {error.reason}") from None
        except http.client.HTTPException:
            pass
        except OSError as error:
            if error.errno in STORAGE_FAULTS:
                raise UserError(
                    f"{self.part}: {error.strerror}; make room and run the same command again to go on"
                ) from None


def receive(origin: Origin, part: Path) -> int:
    """Fill `part`; returns the size that it should have. Raises UserError."""
    part.parent.mkdir(parents=True, exist_ok=True)
    place = part.stat().st_size if part.exists() else 0
    if origin.size is not None and place > origin.size:
        part.unlink()
        place = 0
    need_space(part.parent, max(0, (origin.size or 0) - place))
    idle = 0
    with (
        open(part, "ab") as file,
        tqdm(
            initial=place,
            total=origin.size,
            unit="B",
            unit_scale=True,
            desc="downloading",
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):
        transfer = Transfer(origin, part, file, bar)
        while not transfer.is_complete:
            before = transfer.place
            transfer.attempt()
            idle = 0 if transfer.place > before else idle + 1
            if idle >= ATTEMPTS:
                raise UserError(
                    f"{origin.address}: no byte in {ATTEMPTS} attempts, {transfer.place:,} are here; run the"
                    " same command again to go on"
                )
            if not transfer.is_complete:
                file.flush()
                time.sleep(min(5.0, 0.05 * 2**idle))
        file.flush()
        sync(file.fileno())
    assert transfer.size is not None, "known once the transfer is complete"
    return transfer.size


def publish(part: Path, target: Path, origin: Origin, size: int) -> None:
    """Give the download its final name if it is what its source states, else delete it. Raises UserError."""
    got = part.stat().st_size
    sha256 = file_sum(part, "verifying")
    if got != size or (origin.sha256 is not None and sha256 != origin.sha256):
        part.unlink()
        wrong = (
            f"{got:,} bytes instead of {size:,}"
            if got != size
            else f"SHA-256 {sha256} instead of {origin.sha256}"
        )
        raise UserError(
            f"{origin.address}: the download has {wrong}; it was deleted, run the same command to fetch it"
            " again"
        )
    write_json(
        target.with_name(f"{target.name}.json"),
        {
            "source": origin.address.split("?")[0],
            "size": got,
            "sha256": sha256,
            "stated_sha256": origin.sha256,
        },
    )
    os.replace(part, target)
    sync_folder(target.parent)


def need_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + MARGIN_BYTES > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, the download needs {(size + MARGIN_BYTES) / 1e9:.1f} GB"
            " more"
        )


def problems_of(target: Path) -> list[str]:
    """What is wrong with the download that is here."""
    described = target.with_name(f"{target.name}.json")
    if not target.is_file():
        part = target.with_name(f"{target.name}.part")
        return [
            f"{target} is not there" + (f"; {part.stat().st_size:,} bytes of it are" if part.exists() else "")
        ]
    try:
        stated = load_json(described)
        size, sha256 = int(stated["size"]), str(stated["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{described} is missing or damaged: it says what the size and SHA-256 of the tar must be"]
    if target.stat().st_size != size:
        return [f"{target} has {target.stat().st_size:,} bytes, not {size:,}"]
    return [] if file_sum(target, "verifying") == sha256 else [f"{target} has another SHA-256 than {sha256}"]


def ask(question: str, default: bool = False) -> bool:
    """The answer from a terminal, where Enter alone means `default`; no where there is no terminal."""
    if not sys.stdin.isatty():
        say_now(f"{question} (no terminal to ask on: give the flag)")
        return False
    try:
        answer = input(f"{question} [{'Y/n' if default else 'y/N'}] ").strip().lower()
    except EOFError:
        return False
    return answer in ("y", "yes") or (default and not answer)


def downloaded(target: Path) -> list[Path]:
    """The files of a download."""
    return [target, *(target.with_name(f"{target.name}.{end}") for end in ("part", "json"))]


def prepared(folder: Path) -> list[Path]:
    """Everything made from the download: the bins, their description, and finished groups of an interrupted
    tokenisation.
    """
    return [*(folder / f"{split}.bin" for split in SPLITS), folder / META, folder / WORK]


def reset(paths: Sequence[Path], sure: bool) -> None:
    """Delete files and folders after asking. Raises UserError where the answer is not yes."""
    there = [path for path in paths if path.exists()]
    if not there:
        say_now("nothing to delete")
    elif sure or ask(f"delete {', '.join(map(str, there))}?"):
        for path in there:
            if path.is_dir():
                remove_folder(path)
            else:
                path.unlink()
        say_now("deleted")
    else:
        raise UserError("nothing was deleted (--yes deletes without asking)")


def need_idle(folder: Path) -> None:
    """Raises UserError where the dataset is being tokenised."""
    try:
        with open(folder / WORK / "lock", "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is being prepared by another process") from None
    except OSError:  # there is none, or a file system without locks
        pass


def start_over(target: Path, origin: Origin, sure: bool) -> None:
    """Delete the download and everything made from it, after asking. The BPE ranks stay: they have another
    source. Raises UserError.
    """
    need_idle(target.parent)
    if os.path.exists(origin.address) and target.exists() and target.samefile(origin.address):
        raise UserError(f"--source {origin.address} is the very file that --reset would delete")
    reset([*downloaded(target), *prepared(target.parent)], sure)


def run(args: argparse.Namespace) -> int:
    target = dataset_folder("owt2", args.data_dir) / RAW_OWT2
    if args.sha256 is not None and as_sum(args.sha256) != args.sha256.lower():
        raise UserError("--sha256 must be 64 hexadecimal digits")
    if args.reset and not args.full:
        reset(downloaded(target), args.yes)
        return 0
    if args.check:
        wrong = problems_of(target)
        for line in wrong or [f"{target}: size and SHA-256 are right"]:
            say_now(line)
        return 1 if wrong else 0
    full = args.full
    if not full and not args.bpe:
        full = ask(f"download OpenWebText2 (28 GB) to {target}?", default=True)
    if args.reset:
        start_over(target, origin_of(args), args.yes)  # nothing is deleted where its source cannot be reached
    gpt2()
    say_now(f"GPT-2's BPE ranks are in {cache_folder()}")
    if not full:
        return 0
    if target.exists():
        say_now(f"{target} is there already (--check verifies it, --reset deletes it)")
        return 0
    origin = origin_of(args)
    fetch(origin, target)
    say_now(
        f"{target}: {target.stat().st_size:,} bytes, "
        + ("SHA-256 as stated" if origin.sha256 else "no SHA-256 was stated to compare with")
    )
    return 0


def origin_of(args: argparse.Namespace) -> Origin:
    return source_origin(args.source, args.sha256 and args.sha256.lower()) if args.source else hub_origin()


def main(argv: list[str] | None = None) -> int:
    parser = Arguments(prog="data.download", description="Fetch OpenWebText2 and GPT-2's BPE ranks.")
    parser.add_argument(
        "--full", action="store_true", help="download the corpus and the ranks, without asking"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bpe", action="store_true", help="download the ranks alone")
    what.add_argument(
        "--check", action="store_true", help="verify the existing download; exit 1 where it is wrong"
    )
    what.add_argument(
        "--reset",
        action="store_true",
        help="delete the download; with --full bins and caches too, then download again; asks first",
    )
    parser.add_argument("--yes", action="store_true", help="with --reset: do not ask")
    parser.add_argument(
        "--source", default=None, help="folder or address that holds the tar [the Hugging Face hub]"
    )
    parser.add_argument(
        "--sha256", default=None, help="SHA-256 of the tar, for a --source that does not state it"
    )
    parser.add_argument(
        "--data_dir", "--data-dir", default=None, help=f"root of the datasets [{DEFAULT_DATA_DIR}]"
    )

    def work() -> int:
        args = parser.parsed(argv)
        if args.full and (args.bpe or args.check):
            parser.error("--full: not allowed with --bpe or --check")
        try:
            return run(args)
        except KeyboardInterrupt:
            print("data.download: interrupted; the same command goes on where it was", file=sys.stderr)
            return 130

    return guarded("data.download", work)


if __name__ == "__main__":
    sys.exit(main())
