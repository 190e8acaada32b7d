"""Storage that is full, limited, slow or gone stale under a training: it goes on or stops with a line, and
loses no checkpoint.

The same command, with the fault gone, then ends with the bits of a training that nobody disturbed. Full disks
are real tmpfs mounts, quotas real limits of the process; slow and stale storage is the real one behind a
library (LD_PRELOAD).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from optim.checkpoint import load_checkpoint, newest_valid
from optim.selftest import differing
from tests.chaos import FULL, scale
from tests.chaos.test_checkpoints import ONE_LINE, SMALL
from tests.programs import command, final_state, folder, metrics, run, status, train, trained

pytestmark = pytest.mark.slow

needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="no C compiler here to make the faulty storage with"
)
FAULTY_STORAGE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

/* -1 with ESTALE from call STORAGE_STALE_AFTER on, where a path holds STORAGE_PATH; else 0, after \
STORAGE_DELAY_MS */
static int meets(const char *path, const char *delay)
{
    const char *wanted = getenv("STORAGE_PATH"), *after = getenv("STORAGE_STALE_AFTER"), *wait = \
getenv(delay);
    if (!wanted || !strstr(path, wanted)) return 0;
    if (wait) usleep(1000 * atol(wait));
    if (after && atomic_fetch_add(&calls, 1) >= atol(after)) { errno = ESTALE; return -1; }
    return 0;
}

static int meets_descriptor(int fd, const char *delay)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return meets(path, delay);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
ssize_t write(int fd, const void *data, size_t size)
{ REAL(write); return meets_descriptor(fd, "STORAGE_WRITE_MS") ? -1 : real(fd, data, size); }
ssize_t writev(int fd, const struct iovec *parts, int count)
{ REAL(writev); return meets_descriptor(fd, "STORAGE_WRITE_MS") ? -1 : real(fd, parts, count); }
int fsync(int fd)
{ REAL(fsync); return meets_descriptor(fd, "STORAGE_SYNC_MS") ? -1 : real(fd); }
int rename(const char *from, const char *to)
{ REAL(rename); return meets(to, "STORAGE_SYNC_MS") ? -1 : real(from, to); }
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("unbroken"), **SMALL)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library that stands before write, writev, fsync and rename."""
    source = tmp_path_factory.mktemp("faulty") / "storage.c"
    source.write_text(FAULTY_STORAGE)
    library = source.with_suffix(".so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return str(library)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own. Only its size is ever full: the machine's memory is not at stake."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no right to mount a small disk here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def resize(disk: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)


def used_kib(disk: Path) -> int:
    return shutil.disk_usage(disk).used // 1024


def begin(unbroken: Path, results: Path) -> Path:
    """What SIGKILL between steps 4 and 6 leaves: ckpt_3.pt, and metrics up to there.

    The fault meets this experiment.
    """
    place = results / folder(unbroken).relative_to(unbroken)
    place.mkdir(parents=True)
    shutil.copy(folder(unbroken) / "ckpt_3.pt", place)
    rows = [
        line
        for line in (folder(unbroken) / "metrics.jsonl").read_text().splitlines(keepends=True)
        if json.loads(line)["step"] <= 4
    ]
    (place / "metrics.jsonl").write_text("".join(rows))
    return results


def stopped_by_the_fault(outcome: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line of it; fails for a traceback, more lines or another exit code."""
    lines = outcome.stderr.splitlines()
    assert outcome.returncode == code and len(lines) == 1 and lines[0].startswith(ONE_LINE), (
        f"{outcome.returncode}\n{outcome.stderr}"
    )
    return lines[0]


def checkpoints_are_whole(results: Path) -> None:
    """All files under a checkpoint's name can be loaded, and there is one."""
    newest, notes = newest_valid(folder(results))
    assert newest is not None and notes == []
    for path in folder(results).glob("ckpt*.pt"):
        load_checkpoint(path)


def goes_on_to_the_same_bits(unbroken: Path, results: Path) -> None:
    """The same command, with the fault gone."""
    outcome = train(results, **SMALL)
    assert outcome.returncode == 0, outcome.stderr
    assert differing(final_state(unbroken), final_state(results)) == []
    assert metrics(unbroken) == metrics(results)


# full


# besides what is there; a checkpoint takes 764 KiB
@pytest.mark.parametrize("room_kib", scale([300], [20, 300, 760, 1900]))
def test_disk_that_gets_full_in_a_checkpoint_stops_the_run_and_keeps_the_last_good_one(
    unbroken: Path, disk: Path, room_kib: int
) -> None:
    begin(unbroken, disk)
    resize(disk, used_kib(disk) + room_kib)
    assert "No space left on device" in stopped_by_the_fault(train(disk, **SMALL))
    checkpoints_are_whole(disk)
    resize(disk, 32768)
    goes_on_to_the_same_bits(unbroken, disk)


# lock, train.log, segments.jsonl, status.json and metrics.jsonl take one each
@pytest.mark.parametrize("pages", scale([], range(6)))
def test_disk_without_room_for_small_files_stops_the_run_and_keeps_the_last_good_checkpoint(
    unbroken: Path, disk: Path, pages: int
) -> None:
    begin(unbroken, disk)
    resize(disk, used_kib(disk) + 4 * pages)
    assert "No space left on device" in stopped_by_the_fault(train(disk, **SMALL))
    checkpoints_are_whole(disk)
    resize(disk, 32768)
    goes_on_to_the_same_bits(unbroken, disk)


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="no prlimit here to limit the size of files with")
# root has a full disk above
@pytest.mark.parametrize(
    "largest", scale([300_000] if os.geteuid() else [], [200, 1000, 4096, 300_000, 781_000])
)
def test_quota_stops_the_run_and_keeps_the_last_good_checkpoint(
    unbroken: Path, tmp_path: Path, largest: int
) -> None:
    begin(unbroken, tmp_path)
    assert "File too large" in stopped_by_the_fault(
        run(["prlimit", f"--fsize={largest}", *command(tmp_path, **SMALL)])
    )
    checkpoints_are_whole(tmp_path)
    goes_on_to_the_same_bits(unbroken, tmp_path)


def test_log_that_cannot_be_written_does_not_end_the_training(unbroken: Path, tmp_path: Path) -> None:
    """A device that is always full stands where train.log should be: the lines are lost, and nothing else."""
    begin(unbroken, tmp_path)
    (folder(tmp_path) / "train.log").symlink_to("/dev/full")
    outcome = train(tmp_path, **SMALL)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert metrics(unbroken) == metrics(tmp_path)


# stale

CALLS = 200  # the rest of the training makes some more; it meets no fault in later ones
PASSES = 1  # exit code: the chain tries again


@needs_gcc
@pytest.mark.parametrize("call", scale([70], sorted(random.Random(3).sample(range(CALLS), 8))))
def test_handle_that_goes_stale_stops_the_run_and_keeps_the_last_good_checkpoint(
    unbroken: Path, tmp_path: Path, faulty: str, call: int
) -> None:
    begin(unbroken, tmp_path)
    fault = {"LD_PRELOAD": faulty, "STORAGE_PATH": str(tmp_path), "STORAGE_STALE_AFTER": str(call)}
    assert "Stale file handle" in stopped_by_the_fault(run(command(tmp_path, **SMALL), **fault), PASSES)
    checkpoints_are_whole(tmp_path)
    goes_on_to_the_same_bits(unbroken, tmp_path)


@needs_gcc
@pytest.mark.parametrize(
    "file",
    scale(
        [], [".ckpt_6.pt", ".ckpt.pt", ".status.json", ".segments.jsonl", ".summary.json", "metrics.jsonl"]
    ),
)
def test_one_file_that_goes_stale_stops_the_run_and_keeps_the_last_good_checkpoint(
    unbroken: Path, tmp_path: Path, faulty: str, file: str
) -> None:
    begin(unbroken, tmp_path)
    fault = {"LD_PRELOAD": faulty, "STORAGE_PATH": f"/{file}", "STORAGE_STALE_AFTER": "0"}
    assert "Stale file handle" in stopped_by_the_fault(run(command(tmp_path, **SMALL), **fault), PASSES)
    checkpoints_are_whole(tmp_path)
    goes_on_to_the_same_bits(unbroken, tmp_path)


# slow


@needs_gcc
def test_slow_storage_changes_nothing_but_the_time(unbroken: Path, tmp_path: Path, faulty: str) -> None:
    """A second for each sync and rename of a checkpoint, and of every file in the full test."""
    delay = {
        "LD_PRELOAD": faulty,
        "STORAGE_PATH": scale("/.ckpt_", str(tmp_path)),
        "STORAGE_WRITE_MS": "10",
        "STORAGE_SYNC_MS": "1000",
    }
    outcome = run(command(tmp_path, **SMALL), **delay)
    assert outcome.returncode == 0, outcome.stderr
    assert status(tmp_path)["slowest_save_seconds"] >= 1  # or the library was not there
    assert differing(final_state(unbroken), final_state(tmp_path)) == []
    assert metrics(unbroken) == metrics(tmp_path)


@needs_gcc
def test_storage_that_hangs_ends_the_process_in_the_time_that_is_allowed(
    unbroken: Path, tmp_path: Path, faulty: str
) -> None:
    begin(unbroken, tmp_path)
    hang = {"LD_PRELOAD": faulty, "STORAGE_PATH": "/.ckpt_", "STORAGE_SYNC_MS": "600000"}
    outcome = run(command(tmp_path, **SMALL, watchdog_minutes=0.2), timeout=90, **hang)
    assert (
        outcome.returncode == 1
        and "main.py: error: watchdog: process 0 of 1, after step 9, has not got on" in outcome.stderr
    )
    goes_on_to_the_same_bits(unbroken, tmp_path)


@needs_gcc
@pytest.mark.skipif(not FULL, reason="two trainings on two processes: CHAOS=full")
def test_slow_storage_of_one_process_does_not_time_out_the_other(tmp_path: Path, faulty: str) -> None:
    """The processes that do not write wait for the one that does; the watchdog allows twelve seconds for
    each wait.
    """
    quick, slow = tmp_path / "quick", tmp_path / "slow"
    assert train(quick, 2, **SMALL).returncode == 0
    delay = {
        "LD_PRELOAD": faulty,
        "STORAGE_PATH": str(slow),
        "STORAGE_WRITE_MS": "20",
        "STORAGE_SYNC_MS": "1000",
    }
    outcome = run(command(slow, 2, **SMALL, watchdog_minutes=0.2), **delay)
    assert outcome.returncode == 0, outcome.stderr
    assert status(slow)["slowest_save_seconds"] >= 1
    assert differing(final_state(quick), final_state(slow)) == []
    assert metrics(quick) == metrics(slow)
