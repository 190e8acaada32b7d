"""The lock of an experiment: one holder, dead holders, file systems without working locks."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from errors import UserError
from optim import lock as lock_module
from optim.lock import Lock
from tests.programs import ROOT

HOLDER = """
import socket, sys, time
from pathlib import Path
import optim.lock as lock
lock.HEARTBEAT_SECONDS = 0.1
if sys.argv[2] == "without flock":
    lock.Lock._flock = lambda self: False
    socket.gethostname = lambda: "elsewhere"
held = lock.Lock(Path(sys.argv[1]))
print("held", flush=True)
while not held.lost:
    time.sleep(0.05)
print("lost", flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, seconds in {"HEARTBEAT_SECONDS": 0.1, "STALE_SECONDS": 1.0, "SETTLE_SECONDS": 0.3}.items():
        monkeypatch.setattr(lock_module, name, seconds)


def hold_elsewhere(path: Path, how: str = "", **env: str) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def move_holder(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*unused: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_second_holder_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    first = hold_elsewhere(tmp_path / "lock", SLURM_JOB_ID="17")
    with pytest.raises(UserError, match="being trained by job 17 on "):
        Lock(tmp_path / "lock")
    first.kill()


def test_lock_that_was_given_up_is_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "STALE_SECONDS", 1e9)
    Lock(tmp_path / "lock").release()
    Lock(tmp_path / "lock").release()


def test_lock_of_a_killed_holder_on_this_host_is_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "STALE_SECONDS", 1e9)
    first = hold_elsewhere(tmp_path / "lock")
    first.kill()
    first.wait()
    Lock(tmp_path / "lock").release()


def test_lock_of_a_silent_holder_on_another_host_is_taken_after_a_while(tmp_path: Path) -> None:
    first = hold_elsewhere(tmp_path / "lock")
    first.kill()
    first.wait()
    move_holder(tmp_path / "lock", host="elsewhere")
    began = time.monotonic()
    Lock(tmp_path / "lock").release()
    assert time.monotonic() - began >= lock_module.STALE_SECONDS


def test_holder_on_another_host_that_renews_its_lock_is_not_displaced_where_flock_stays_within_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hold_elsewhere(tmp_path / "lock", "without flock")
    with pytest.raises(UserError, match="being trained by"):
        Lock(tmp_path / "lock")
    first.kill()


def test_of_two_at_once_without_flock_one_wins(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), "without flock"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    time.sleep(5)
    alive = [racer for racer in racers if racer.poll() is None]
    for racer in alive:
        racer.kill()
    assert len(alive) == 1


def test_holder_whose_name_was_replaced_knows_that_it_has_lost(tmp_path: Path) -> None:
    first = hold_elsewhere(tmp_path / "lock")
    move_holder(tmp_path / "lock", token="another")
    assert first.stdout is not None
    assert first.stdout.readline() == "lost\n"
    first.wait(5)


def test_next_start_of_a_requeued_job_replaces_the_start_that_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hold_elsewhere(tmp_path / "lock", SLURM_JOB_ID="17")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    Lock(tmp_path / "lock").release()
    assert first.wait(5) == 0


def test_lost_lock_is_left_to_its_new_holder(tmp_path: Path) -> None:
    held = Lock(tmp_path / "lock")
    move_holder(tmp_path / "lock", token="another")
    time.sleep(0.5)
    held.release()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "another"
