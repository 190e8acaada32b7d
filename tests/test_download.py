"""data.download against a server on localhost that breaks, lies and stalls."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from data import download
from data.tokenize import RAW_OWT2
from tests.downloads import BODY, MIB, SUM, TAR, call, command, left, one_error, part, target
from tests.file_server import Fault, FileServer, Handler, serving
from tests.programs import run, start

pytestmark = pytest.mark.usefixtures("local")


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


# killed processes


def wait_for(root: Path, size: int, process: subprocess.Popen[str]) -> None:
    """Until so many bytes of the download are on disk."""
    end = time.monotonic() + 60
    while not (part(root).exists() and part(root).stat().st_size >= size):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


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
