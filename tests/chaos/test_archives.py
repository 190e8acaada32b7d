"""Archives whose members lead elsewhere: nothing lands outside the dataset or is taken from there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import data.inspect
import data.tokenize
from tests.chaos import scale
from tests.chaos.attacks import tree
from tests.programs import ROOT, environment

pytestmark = pytest.mark.slow
TEXT = b'{"text": "a document of some length"}\n' * 20
SECRET = "§ stands outside of the archive, and this sign in no text of it"


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = TEXT
) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
    return entry, content


def hostile_members(outside: Path) -> dict[str, list[tuple[tarfile.TarInfo, bytes]]]:
    secret = str(outside / "secret.jsonl")
    return {
        "above": [member("../outside/landed.jsonl")],
        "above, later": [member("a/b/../../../outside/landed.jsonl")],
        "absolute": [member(str(outside / "landed.jsonl"))],
        "two slashes": [member("/" + str(outside / "landed.jsonl"))],
        "long name": [member("../" * 60 + "x" * 80 + "/landed.jsonl")],
        "symlink to a file": [member("link.jsonl", tarfile.SYMTYPE, secret)],
        "symlink to a folder": [member("link", tarfile.SYMTYPE, str(outside)), member("link/landed.jsonl")],
        "hardlink": [member("link.jsonl", tarfile.LNKTYPE, secret)],
        "hardlink above": [member("link.jsonl", tarfile.LNKTYPE, "../outside/secret.jsonl")],
        "character device": [member("null.jsonl", tarfile.CHRTYPE)],
        "block device": [member("disk.jsonl", tarfile.BLKTYPE)],
        "fifo": [member("fifo.jsonl", tarfile.FIFOTYPE)],
        "folder above": [member("../outside/made", tarfile.DIRTYPE)],
    }


ARCHIVES = list(hostile_members(Path("/x")))


def pack(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content) if entry.size else None)
    return path


def characters(folder: Path) -> str:
    """Of which a dataset is made, character by character; nothing where none was made, or of longer
    tokens.
    """
    path = folder / "meta.json"
    return str(json.loads(path.read_text()).get("characters", "")) if path.exists() else ""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.jsonl").write_text(json.dumps({"text": SECRET}, ensure_ascii=False) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["above", "absolute", "symlink to a folder"])
def test_the_hostile_archives_land_outside_where_they_are_unpacked(
    tmp_path: Path, outside: Path, kind: str
) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(pack(tmp_path / "x.tar", hostile_members(outside)[kind])) as tar:
        tar.extractall(tmp_path / "in", filter="fully_trusted")
    assert (outside / "landed.jsonl").exists()


@pytest.mark.parametrize("max_bad", ["0", "9"])
@pytest.mark.parametrize(
    ("tokenizer", "form"),
    scale(
        [("char", tarfile.GNU_FORMAT)],
        [("char", tarfile.GNU_FORMAT), ("char", tarfile.PAX_FORMAT), ("gpt2", tarfile.GNU_FORMAT)],
    ),
)
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_hostile_archive_leaves_nothing_outside_and_takes_nothing_from_there(
    tmp_path: Path,
    outside: Path,
    call: Any,
    bpe_cache: Path,
    kind: str,
    tokenizer: str,
    form: int,
    max_bad: str,
) -> None:
    archive = pack(tmp_path / "corpus.tar", [member("good.jsonl"), *hostile_members(outside)[kind]], form)
    before = tree(tmp_path)
    outcome = call(
        data.tokenize.main,
        "--name",
        "mine",
        "--data_dir",
        tmp_path / "data",
        "--input",
        archive,
        "--tokenizer",
        tokenizer,
        "--max-bad",
        max_bad,
        "--workers",
        1,
    )
    assert outcome.code in (0, 2) and "Traceback" not in outcome.err, outcome
    assert tree(tmp_path, without=tmp_path / "data") == before
    assert not (set(SECRET) - set(TEXT.decode())) & set(characters(tmp_path / "data" / "mine"))


@pytest.mark.parametrize("size", [-512, -1, 8**11 - 1, 1 << 62])
def test_a_member_whose_size_is_a_lie_ends_in_a_line(tmp_path: Path, call: Any, size: int) -> None:
    archive = pack(tmp_path / "corpus.tar", [member("good.jsonl"), member("liar.jsonl")])
    raw = bytearray(archive.read_bytes())
    at = raw.index(b"liar.jsonl")
    raw[at + 124 : at + 136] = (
        (size % (1 << 96)).to_bytes(12, "big") if not 0 <= size < 8**11 else b"%011o\0" % size
    )
    raw[at + 124] |= 0x80 if not 0 <= size < 8**11 else 0
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    archive.write_bytes(raw)
    # in a process of its own: a negative size has led tarfile in circles
    outcome = subprocess.run(
        [
            sys.executable,
            "-m",
            "data.tokenize",
            "--name",
            "mine-char",
            "--data_dir",
            str(tmp_path / "data"),
            "--input",
            str(archive),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr, outcome
