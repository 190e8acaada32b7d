"""data.download against a server on localhost that breaks, lies and stalls."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from data import download
from data.bpe import RANKS
from data.tokenize import RAW_OWT2
from tests.file_server import Fault, FileServer, Handler, serving
from tests.programs import ROOT, environment, run, start

MIB = 1 << 20
BODY = random.Random(7).randbytes(3 * MIB + 12345)
SUM = hashlib.sha256(BODY).hexdigest()
TAR = f"/{RAW_OWT2}"
HUB_TAR = f"/datasets/{download.HUB_REPOSITORY}/resolve/main/{RAW_OWT2}"


@pytest.fixture(autouse=True)
def local(monkeypatch, bpe_cache):
    """No proxy between the tests and their server, and no terminal to ask on."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture
def site():
    with serving(Handler, FileServer) as server:
        yield server


def target(root: Path) -> Path:
    return root / "openwebtext2" / RAW_OWT2


def part(root: Path) -> Path:
    return target(root).with_name(f"{RAW_OWT2}.part")


def call(root: Path, *words: str) -> int:
    return download.main([*words, "--data_dir", str(root)])


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "data.download", *words, "--data_dir", str(root)]


def left(root: Path) -> list[str]:
    """Names of the files in the dataset's folder."""
    return sorted(path.name for path in target(root).parent.rglob("*") if path.is_file())


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("data.download: error: ")
    return lines[0]


def put(root: Path, content: bytes = BODY) -> Path:
    """A finished download as `--full --source` leaves it."""
    folder = root / "source"
    folder.mkdir()
    (folder / RAW_OWT2).write_bytes(content)
    assert call(root, "--full", "--source", str(folder)) == 0
    return target(root)


def wait_for(root: Path, size: int, process: subprocess.Popen[str]) -> None:
    """Until so many bytes of the download are on disk."""
    end = time.monotonic() + 60
    while not (part(root).exists() and part(root).stat().st_size >= size):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


# whole and right


def test_address_of_the_file_gives_the_same_bytes(site, tmp_path):
    assert call(tmp_path, "--full", "--source", site.add(TAR, BODY)) == 0
    assert target(tmp_path).read_bytes() == BODY


def test_address_of_the_folder_gives_the_same_bytes(site, tmp_path):
    site.add(f"/some/where{TAR}", BODY)
    assert call(tmp_path, "--full", "--source", f"{site.address}/some/where/") == 0
    assert target(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("name", ["", RAW_OWT2])
def test_folder_or_file_on_disk_gives_the_same_bytes(tmp_path, name):
    (tmp_path / RAW_OWT2).write_bytes(BODY)
    assert call(tmp_path / "new", "--full", "--source", str(tmp_path / name)) == 0
    assert target(tmp_path / "new").read_bytes() == BODY


def test_source_on_disk_stays(tmp_path):
    (tmp_path / RAW_OWT2).write_bytes(BODY)
    call(tmp_path / "new", "--full", "--source", str(tmp_path))
    assert (tmp_path / RAW_OWT2).read_bytes() == BODY


def test_nothing_but_the_tar_and_its_description_is_left(site, tmp_path):
    call(tmp_path, "--full", "--source", site.add(TAR, BODY))
    assert left(tmp_path) == [RAW_OWT2, f"{RAW_OWT2}.json"]


def test_description_holds_source_size_and_sum(site, tmp_path):
    address = site.add(TAR, BODY)
    call(tmp_path, "--full", "--source", address)
    stated = json.loads(target(tmp_path).with_name(f"{RAW_OWT2}.json").read_text())
    assert stated == {"source": address, "size": len(BODY), "sha256": SUM, "stated_sha256": SUM}


def test_the_user_is_told_that_the_sum_was_compared(site, tmp_path, capsys):
    call(tmp_path, "--full", "--source", site.add(TAR, BODY))
    assert capsys.readouterr().out.endswith(f"{len(BODY):,} bytes, SHA-256 as stated\n")


def test_the_user_is_told_that_there_was_no_sum(site, tmp_path, capsys):
    assert call(tmp_path, "--full", "--source", site.add(TAR, BODY, with_sum=False)) == 0
    assert "no SHA-256 was stated" in capsys.readouterr().out


@pytest.mark.parametrize("style", [str.lower, str.upper])
def test_sum_on_the_command_line_is_compared(site, tmp_path, style):
    assert (
        call(tmp_path, "--full", "--source", site.add(TAR, BODY, with_sum=False), "--sha256", style(SUM)) == 0
    )


def test_impossible_sum_on_the_command_line_is_refused_before_anything_is_fetched(site, tmp_path):
    assert call(tmp_path, "--full", "--source", site.add(TAR, BODY), "--sha256", "abc") == 2
    assert site.asked(TAR) == []


def test_empty_file_is_a_file(site, tmp_path):
    assert call(tmp_path, "--full", "--source", site.add(TAR, b"")) == 0
    assert target(tmp_path).read_bytes() == b""


# broken connections


def test_broken_connections_are_resumed_where_they_were(site, tmp_path):
    address = site.add(TAR, BODY)
    site.faults[TAR] = [Fault(after=MIB + 100_000, reset=True), Fault(after=MIB + 50_000, reset=True)]
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY
    first, second, third = site.starts(TAR)
    assert first == 0 and MIB <= second <= MIB + 100_000 and 2 * MIB <= third <= second + MIB + 50_000


def test_connections_that_break_after_every_300_kb_end_at_last(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    address = site.add(TAR, BODY)
    site.always[TAR] = Fault(after=300_000, reset=True)
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY


def test_short_reads_are_resumed_to_the_byte(site, tmp_path):
    address = site.add(TAR, BODY)
    site.faults[TAR] = [Fault(after=100_001), Fault(after=7), Fault(after=MIB)]
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY
    assert site.starts(TAR) == [0, 100_001, 100_008, 100_008 + MIB]


def test_answer_cut_before_its_first_byte_is_tried_again(site, tmp_path):
    address = site.add(TAR, BODY)
    site.faults[TAR] = [Fault(after=0), Fault(after=0, reset=True)]
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY


def test_server_without_ranges_starts_again_and_ends_right(site, tmp_path):
    address = site.add(TAR, BODY)
    site.ranges = False
    site.faults[TAR] = [Fault(after=2 * MIB), Fault(after=MIB)]
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY
    assert site.starts(TAR) == [0, 2 * MIB, MIB]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_server_in_trouble_is_asked_again(site, tmp_path, status):
    address = site.add(TAR, BODY)
    site.faults[TAR] = [Fault(status=status)] * 2
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY


def test_trouble_in_the_middle_does_not_lose_the_beginning(site, tmp_path):
    address = site.add(TAR, BODY)
    site.faults[TAR] = [Fault(after=MIB), Fault(status=502)]
    assert call(tmp_path, "--full", "--source", address) == 0
    assert site.starts(TAR) == [0, MIB, MIB]


def test_part_of_an_earlier_run_is_gone_on_with(site, tmp_path):
    address = site.add(TAR, BODY)
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(BODY[:1_234_567])
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY
    assert site.starts(TAR) == [1_234_567]


def test_part_of_an_earlier_run_is_gone_on_with_from_a_folder(tmp_path):
    (tmp_path / RAW_OWT2).write_bytes(BODY)
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(BODY[:1_234_567])
    assert call(tmp_path, "--full", "--source", str(tmp_path)) == 0
    assert target(tmp_path).read_bytes() == BODY


def test_part_that_is_whole_is_only_verified(site, tmp_path):
    address = site.add(TAR, BODY)
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(BODY)
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("on_disk", [True, False])
def test_part_longer_than_its_source_never_becomes_the_tar(site, tmp_path, on_disk):
    address = site.add(TAR, BODY, with_sum=False)
    (tmp_path / RAW_OWT2).write_bytes(BODY)
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(BODY + b"more")
    call(tmp_path, "--full", "--source", str(tmp_path) if on_disk else address)
    assert not target(tmp_path).exists() or target(tmp_path).read_bytes() == BODY


# refusals


def wrong_bytes(site: FileServer) -> str:
    address = site.add(TAR, BODY)
    site.files[TAR] = BODY[:-1] + bytes([BODY[-1] ^ 1])
    return address


def test_wrong_bytes_are_refused_in_one_line(site, tmp_path, capsys):
    assert call(tmp_path, "--full", "--source", wrong_bytes(site)) == 2
    assert f"instead of {SUM}" in one_error(capsys)


def test_wrong_bytes_are_deleted(site, tmp_path):
    call(tmp_path, "--full", "--source", wrong_bytes(site))
    assert left(tmp_path) == []


def test_wrong_bytes_of_a_file_are_refused(tmp_path):
    (tmp_path / RAW_OWT2).write_bytes(BODY)
    (tmp_path / f"{RAW_OWT2}.sha256").write_text(f"{'0' * 64}  {RAW_OWT2}\n")
    assert call(tmp_path, "--full", "--source", str(tmp_path)) == 2
    assert left(tmp_path) == []


def test_after_wrong_bytes_the_same_command_brings_the_right_ones(site, tmp_path):
    address = wrong_bytes(site)
    call(tmp_path, "--full", "--source", address)
    site.files[TAR] = BODY
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(after=0, reset=True)])
def test_sum_that_could_not_be_read_at_once_is_still_compared(site, tmp_path, fault):
    address = wrong_bytes(site)
    site.faults[f"{TAR}.sha256"] = [fault]
    call(tmp_path, "--full", "--source", address)
    assert not target(tmp_path).exists()


def test_absent_file_is_refused_in_one_line(site, tmp_path, capsys):
    assert call(tmp_path, "--full", "--source", f"{site.address}{TAR}") == 2
    assert "HTTP 404" in one_error(capsys)


def test_absent_file_leaves_nothing(site, tmp_path):
    call(tmp_path, "--full", "--source", f"{site.address}{TAR}")
    assert left(tmp_path) == []


def test_absent_folder_is_refused_in_one_line(tmp_path, capsys):
    assert call(tmp_path, "--full", "--source", str(tmp_path / "nowhere")) == 2
    assert "nowhere" in one_error(capsys)


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(after=0), Fault(after=0, reset=True)])
def test_server_that_never_gives_a_byte_is_given_up(site, tmp_path, monkeypatch, capsys, fault):
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    address = site.add(TAR, BODY)
    site.always[TAR] = fault
    assert call(tmp_path, "--full", "--source", address) == 2
    assert "no byte in 3 attempts" in one_error(capsys)
    assert len(site.asked(TAR)) == 3


def test_no_server_at_all_is_given_up_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with serving(Handler, FileServer) as gone:
        address = gone.address
    assert call(tmp_path, "--full", "--source", f"{address}{TAR}") == 2
    one_error(capsys)


def test_what_came_before_giving_up_is_kept(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    address = site.add(TAR, BODY)
    site.faults[TAR] = [Fault(after=MIB + 1)]
    site.always[TAR] = Fault(status=500)
    assert call(tmp_path, "--full", "--source", address) == 2
    assert part(tmp_path).read_bytes() == BODY[: MIB + 1]


def test_stalled_server_is_left_and_resumed(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)
    address = site.add(TAR, BODY)
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(BODY[:MIB])
    site.faults[TAR] = [Fault(stall=2.0)]
    assert call(tmp_path, "--full", "--source", address) == 0
    assert target(tmp_path).read_bytes() == BODY
    assert site.starts(TAR) == [MIB, MIB]


@pytest.mark.parametrize("on_disk", [True, False])
def test_too_little_space_is_refused_before_anything_is_fetched(site, tmp_path, monkeypatch, capsys, on_disk):
    address = site.add(TAR, BODY)
    (tmp_path / RAW_OWT2).write_bytes(BODY)
    monkeypatch.setattr(download, "MARGIN_BYTES", 1 << 60)
    assert call(tmp_path, "--full", "--source", str(tmp_path) if on_disk else address) == 2
    assert "GB free" in one_error(capsys)
    assert site.asked(TAR) == [] and left(tmp_path) == []


@pytest.mark.parametrize("on_disk", [True, False])
def test_space_for_the_tar_itself_is_needed(site, tmp_path, monkeypatch, capsys, on_disk):
    address = site.add(TAR, BODY)
    (tmp_path / RAW_OWT2).write_bytes(BODY)
    free = download.MARGIN_BYTES + len(BODY) - 1
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(free, 0, free)
    )
    assert call(tmp_path, "--full", "--source", str(tmp_path) if on_disk else address) == 2
    assert "GB free" in one_error(capsys)


def test_space_is_needed_only_for_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / RAW_OWT2).write_bytes(BODY)
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(BODY[:-10])
    free = download.MARGIN_BYTES + 10
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(free, 0, free)
    )
    assert call(tmp_path, "--full", "--source", str(tmp_path)) == 0


# again


def test_tar_that_is_there_is_not_touched(site, tmp_path):
    target(tmp_path).parent.mkdir()
    target(tmp_path).write_bytes(b"mine")
    before = target(tmp_path).stat()
    assert call(tmp_path, "--full", "--source", site.add(TAR, BODY)) == 0
    after = target(tmp_path).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert target(tmp_path).read_bytes() == b"mine"


def test_second_full_fetches_nothing(site, tmp_path, capsys):
    address = site.add(TAR, BODY)
    assert call(tmp_path, "--full", "--source", address) == 0
    before = len(site.requests)
    assert call(tmp_path, "--full", "--source", address) == 0
    assert len(site.requests) == before
    assert "is there already" in capsys.readouterr().out


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


# killed processes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_download_goes_on_where_it_was(site, tmp_path, number):
    words = command(tmp_path, "--full", "--source", site.add(TAR, BODY))
    site.pause = 0.05
    process = start(words)
    wait_for(tmp_path, MIB, process)
    process.send_signal(number)
    process.communicate(timeout=30)
    kept = part(tmp_path).stat().st_size
    assert not target(tmp_path).exists()
    site.pause = 0.0
    outcome = run(words)
    assert outcome.returncode == 0, outcome.stderr
    assert target(tmp_path).read_bytes() == BODY
    assert site.starts(TAR) == [0, kept] and kept >= MIB


@pytest.mark.slow
def test_interrupted_download_says_in_one_line_how_to_go_on(site, tmp_path):
    site.pause = 0.05
    process = start(command(tmp_path, "--full", "--source", site.add(TAR, BODY)))
    wait_for(tmp_path, MIB, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "data.download: interrupted; the same command goes on where it was\n"


# the hub, with its own client


@pytest.fixture
def hub(site):
    site.files[HUB_TAR] = BODY
    site.headers.update(
        {
            "X-Repo-Commit": "a" * 40,
            "ETag": '"0"',
            "X-Linked-Etag": f'"{SUM}"',
            "X-Linked-Size": str(len(BODY)),
        }
    )
    return site


def hub_environment(site: FileServer, root: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": site.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(root / "hf"),
        "HF_HUB_OFFLINE": "0",
    }


def hub_run(site: FileServer, root: Path) -> subprocess.CompletedProcess[str]:
    return run(command(root, "--full"), **hub_environment(site, root))


@pytest.mark.slow
def test_hub_gives_the_same_bytes(hub, tmp_path):
    outcome = hub_run(hub, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert target(tmp_path).read_bytes() == BODY
    assert outcome.stdout.endswith("SHA-256 as stated\n")
    assert left(tmp_path) == [RAW_OWT2, f"{RAW_OWT2}.json"]


@pytest.mark.slow
def test_hub_with_wrong_bytes_is_refused(hub, tmp_path):
    hub.files[HUB_TAR] = BODY[:-1] + bytes([BODY[-1] ^ 1])
    outcome = hub_run(hub, tmp_path)
    assert outcome.returncode == 2, outcome.stderr
    assert f"instead of {SUM}" in outcome.stderr.splitlines()[-1]
    assert RAW_OWT2 not in left(tmp_path)


@pytest.fixture
def large_hub(hub):
    """More than the hub's client takes at once (10 MiB)."""
    content = BODY * 8
    hub.files[HUB_TAR] = content
    hub.headers.update(
        {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
    )
    return hub


@pytest.mark.slow
def test_hub_connection_that_breaks_is_resumed(large_hub, tmp_path):
    large_hub.faults[HUB_TAR] = [Fault(after=15 * MIB)]
    outcome = hub_run(large_hub, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert target(tmp_path).read_bytes() == BODY * 8
    first, second = large_hub.starts(HUB_TAR)
    assert first == 0 and 10 * MIB <= second <= 15 * MIB


@pytest.mark.slow
def test_hub_download_that_was_killed_goes_on_where_it_was(large_hub, tmp_path):
    large_hub.pause = 0.01
    process = start(command(tmp_path, "--full"), **hub_environment(large_hub, tmp_path))
    end = time.monotonic() + 60
    while not any(
        path.stat().st_size >= 5 * MIB for path in target(tmp_path).parent.rglob("*") if path.is_file()
    ):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    large_hub.pause = 0.0
    outcome = hub_run(large_hub, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert target(tmp_path).read_bytes() == BODY * 8
    assert large_hub.starts(HUB_TAR)[-1] >= 5 * MIB


@pytest.mark.slow
def test_hub_without_the_file_is_refused_in_one_line(hub, tmp_path):
    del hub.files[HUB_TAR]
    outcome = hub_run(hub, tmp_path)
    assert outcome.returncode == 2
    assert len(outcome.stderr.splitlines()) == 1 and outcome.stderr.startswith("data.download: error: ")


def test_fault_of_the_hub_client_without_a_text_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    assert call(tmp_path, "--full") == 2
    assert "RuntimeError" in one_error(capsys)


def test_hub_client_is_a_requirement():
    names = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert any(name.replace("-", "_").startswith("huggingface_hub") for name in names)


# the job script


def job(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(
        [str(shutil.which("bash")), "iridis/download-dataset/job.sh", *words],
        SCRATCH_DIR=str(root),
        VENV_DIR=sys.prefix,
    )


@pytest.mark.slow
def test_job_checks_what_the_job_fetched(site, tmp_path):
    fetched = job(tmp_path, "--full", "--source", site.add(TAR, BODY))
    assert fetched.returncode == 0, fetched.stderr
    checked = job(tmp_path, "--check")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout == f"{target(tmp_path / 'datasets')}: size and SHA-256 are right\n"


@pytest.mark.slow
def test_job_check_fails_where_nothing_is(tmp_path):
    outcome = job(tmp_path, "--check")
    assert (outcome.returncode, outcome.stdout) == (1, f"{target(tmp_path / 'datasets')} is not there\n")
