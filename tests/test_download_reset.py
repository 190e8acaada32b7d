"""data.download --check, --reset and --bpe: what is there, what goes, what comes anew."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.bpe import RANKS
from data.tokenize import RAW_OWT2
from tests.downloads import BODY, MIB, TAR, call, command, left, one_error, part, put, target
from tests.programs import ROOT, environment, run

pytestmark = pytest.mark.usefixtures("local")


# --check


def test_check_of_a_right_tar(tmp_path, capsys):
    put(tmp_path)
    assert call(tmp_path, "--check") == 0
    assert capsys.readouterr().out.endswith("size and SHA-256 are right\n")


@pytest.mark.parametrize("place", [0, len(BODY) // 2, len(BODY) - 1])
def test_check_sees_one_flipped_bit(tmp_path, capsys, place):
    with open(put(tmp_path), "r+b") as file:
        file.seek(place)
        file.write(bytes([BODY[place] ^ 1]))
    assert call(tmp_path, "--check") == 1
    assert "another SHA-256" in capsys.readouterr().out


def test_check_sees_a_cut_tar(tmp_path, capsys):
    os.truncate(put(tmp_path), 1000)
    assert call(tmp_path, "--check") == 1
    assert f"1,000 bytes, not {len(BODY):,}" in capsys.readouterr().out


def test_check_of_nothing(tmp_path, capsys):
    assert call(tmp_path, "--check") == 1
    assert capsys.readouterr().out == f"{target(tmp_path)} is not there\n"


def test_check_of_a_part_says_how_much_is_there(tmp_path, capsys):
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(BODY[:MIB])
    assert call(tmp_path, "--check") == 1
    assert f"{MIB:,} bytes of it are" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "{"])
def test_check_without_a_usable_description_fails_in_one_line(tmp_path, capsys, text):
    described = put(tmp_path).with_name(f"{RAW_OWT2}.json")
    capsys.readouterr()
    described.unlink() if text is None else described.write_text(text)
    assert call(tmp_path, "--check") == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_check_changes_nothing(tmp_path):
    put(tmp_path)
    os.truncate(target(tmp_path), 1000)
    before = left(tmp_path)
    call(tmp_path, "--check")
    assert left(tmp_path) == before


# --reset


def test_reset_without_a_terminal_deletes_nothing(tmp_path, capsys):
    put(tmp_path)
    capsys.readouterr()
    assert call(tmp_path, "--reset") == 2
    assert "nothing was deleted" in one_error(capsys)
    assert left(tmp_path) == [RAW_OWT2, f"{RAW_OWT2}.json"]


def test_reset_with_yes_deletes_the_download(tmp_path):
    put(tmp_path)
    part(tmp_path).write_bytes(b"part")
    assert call(tmp_path, "--reset", "--yes") == 0
    assert left(tmp_path) == []


def test_reset_leaves_the_bins(tmp_path):
    bins = put(tmp_path).with_name("train.bin")
    bins.write_bytes(b"tokens")
    call(tmp_path, "--reset", "--yes")
    assert left(tmp_path) == ["train.bin"]


def test_reset_of_nothing_is_no_fault(tmp_path):
    assert call(tmp_path, "--reset") == 0


@pytest.fixture
def typing(monkeypatch):
    """Type on a terminal of the program's own."""
    opened = []

    def type_keys(keys: bytes) -> None:
        keyboard, terminal = os.openpty()
        opened.append(keyboard)
        monkeypatch.setattr(sys, "stdin", os.fdopen(terminal, "r"))
        os.write(keyboard, keys)

    yield type_keys
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize("answer", [b"y\n", b"Y\n", b" yes \n"])
def test_reset_deletes_when_told_so(tmp_path, typing, answer):
    put(tmp_path)
    typing(answer)
    assert call(tmp_path, "--reset") == 0
    assert left(tmp_path) == []


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"yep\n", b"\x04"])
def test_reset_deletes_nothing_on_any_other_answer(tmp_path, typing, capsys, answer):
    put(tmp_path)
    typing(answer)
    assert call(tmp_path, "--reset") == 2
    assert left(tmp_path) == [RAW_OWT2, f"{RAW_OWT2}.json"]


@pytest.mark.parametrize(
    ("answer", "fetched"), [(b"y\n", True), (b"\n", True), (b"n\n", False), (b"\x04", False)]
)
def test_without_a_flag_a_terminal_is_asked(site, tmp_path, typing, answer, fetched):
    typing(answer)
    assert call(tmp_path, "--source", site.add(TAR, BODY)) == 0
    assert target(tmp_path).exists() == fetched


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code", "stays"), [(b"y\n", 0, False), (b"n\n", 2, True)])
def test_reset_on_a_real_terminal(tmp_path, answer, code, stays):
    put(tmp_path)
    keyboard, terminal = os.openpty()
    os.write(keyboard, answer)
    outcome = subprocess.run(
        command(tmp_path, "--reset"),
        cwd=ROOT,
        env=environment(),
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(terminal)
    os.close(keyboard)
    assert (outcome.returncode, target(tmp_path).exists()) == (code, stays), outcome.stderr


# --reset --full


def prepared(root: Path) -> Path:
    """The dataset's folder with a download, and all that a tokenisation leaves: the bins, and the groups
    of one that was cut short.
    """
    folder = put(root).parent
    for name in ("train.bin", "val.bin", "meta.json", ".tokenize/000000.bin", ".tokenize/lock"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"old")
    return folder


def test_reset_full_wipes_bins_and_caches_and_downloads_again(site, tmp_path, monkeypatch):
    folder, ranks = prepared(tmp_path), tmp_path / "ranks"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ranks))
    assert call(tmp_path, "--bpe") == 0
    for path in ranks.iterdir():
        path.write_bytes(b"damaged")
    assert call(tmp_path, "--reset", "--full", "--yes", "--source", site.add(TAR, BODY[:MIB])) == 0
    assert left(tmp_path) == [RAW_OWT2, f"{RAW_OWT2}.json"] and (folder / RAW_OWT2).read_bytes() == BODY[:MIB]
    assert genuine(ranks)


@pytest.mark.parametrize("answer", [b"n\n", b"\n"])
def test_reset_full_asks_and_deletes_nothing_without_a_yes(site, tmp_path, typing, answer):
    prepared(tmp_path)
    before = left(tmp_path)
    typing(answer)
    assert call(tmp_path, "--reset", "--full", "--source", site.add(TAR, BODY)) == 2
    assert left(tmp_path) == before


def test_reset_full_deletes_nothing_where_the_source_cannot_be_reached(tmp_path, capsys):
    prepared(tmp_path)
    before = left(tmp_path)
    capsys.readouterr()
    assert call(tmp_path, "--reset", "--full", "--yes", "--source", str(tmp_path / "nowhere")) == 2
    assert left(tmp_path) == before and "nowhere" in one_error(capsys)


def test_reset_full_keeps_the_file_that_it_would_download_from(tmp_path, capsys):
    folder = prepared(tmp_path)
    before = left(tmp_path)
    capsys.readouterr()
    assert call(tmp_path, "--reset", "--full", "--yes", "--source", str(folder)) == 2
    assert left(tmp_path) == before and "very file" in one_error(capsys)


def test_reset_full_leaves_a_dataset_that_is_being_tokenised(site, tmp_path, capsys):
    folder = prepared(tmp_path)
    before = left(tmp_path)
    capsys.readouterr()
    with open(folder / ".tokenize" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call(tmp_path, "--reset", "--full", "--yes", "--source", site.add(TAR, BODY)) == 2
    assert left(tmp_path) == before and "being prepared" in one_error(capsys)


# BPE ranks


def genuine(cache: Path) -> bool:
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in cache.iterdir()) == sorted(
        RANKS.values()
    )


def test_without_a_flag_and_terminal_only_the_ranks_are_cached(site, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "ranks"))
    assert call(tmp_path, "--source", site.add(TAR, BODY)) == 0
    assert genuine(tmp_path / "ranks") and site.requests == [] and not target(tmp_path).parent.exists()


def test_bpe_fetches_no_tar(site, tmp_path):
    assert call(tmp_path, "--bpe", "--source", site.add(TAR, BODY)) == 0
    assert site.requests == [] and not target(tmp_path).parent.exists()


def test_bpe_replaces_damaged_ranks(tmp_path, monkeypatch):
    cache = tmp_path / "ranks"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    call(tmp_path, "--bpe")
    for path in cache.iterdir():
        os.truncate(path, 10)
    assert call(tmp_path, "--bpe") == 0
    assert genuine(cache)


@pytest.mark.slow
def test_bpe_needs_no_network(tmp_path):
    nowhere = "http://127.0.0.1:9"
    outcome = run(
        command(tmp_path, "--bpe"),
        TIKTOKEN_CACHE_DIR=str(tmp_path / "ranks"),
        http_proxy=nowhere,
        https_proxy=nowhere,
        HTTP_PROXY=nowhere,
        HTTPS_PROXY=nowhere,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert genuine(tmp_path / "ranks")
