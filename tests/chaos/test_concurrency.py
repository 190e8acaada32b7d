"""Several jobs on one experiment: one trains, the others are told who."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from optim.selftest import differing
from tests.chaos import scale
from tests.chaos.test_kills import SETTINGS
from tests.programs import STOPPED, command, final_state, folder, start, train, wait_for_step

pytestmark = pytest.mark.slow

STARTS = scale(5, 20)
LONG = {"iterations": 10**6, "log_freq": 1, "warmup_percent": 0, "eval_freq": 0}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], list[str]]:
    """Many starts at once: the experiment, their exit codes and errors; the winner was stopped by a file."""
    results = tmp_path_factory.mktemp("crowd")
    begun, end = [start(command(results, **LONG)) for _ in range(STARTS)], time.monotonic() + 60 + 20 * STARTS
    try:
        while sum(process.poll() is None for process in begun) > 1 and time.monotonic() < end:
            time.sleep(0.1)
        (folder(results) / "stop").touch()
        said = [process.communicate(timeout=60)[1] for process in begun]
    finally:
        for process in begun:
            process.kill()
    return results, [process.returncode for process in begun], said


def test_of_many_starts_one_wins(crowd: tuple[Path, list[int], list[str]]) -> None:
    assert sorted(crowd[1]) == [2] * (STARTS - 1) + [STOPPED]


def test_those_that_lose_are_told_by_whom_in_one_line(crowd: tuple[Path, list[int], list[str]]) -> None:
    refusals = [said for code, said in zip(*crowd[1:], strict=True) if code == 2]
    host = re.escape(socket.gethostname())
    assert all(
        re.fullmatch(rf"main.py: error: \S+ is being trained by ({host}:\d+|another process)\n", said)
        for said in refusals
    ), refusals


def test_only_the_winner_writes(crowd: tuple[Path, list[int], list[str]]) -> None:
    assert len((folder(crowd[0]) / "segments.jsonl").read_text().splitlines()) == 1
    log = (folder(crowd[0]) / "train.log").read_text()
    assert log.count("effective batch") == 1


def test_second_job_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    first = start(command(tmp_path, **LONG), SLURM_JOB_ID="4711")
    wait_for_step(tmp_path, 1, first)
    second = train(tmp_path, **LONG)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert (second.returncode, first.returncode) == (2, STOPPED)
    assert f"is being trained by job 4711 on {socket.gethostname()}" in second.stderr


def test_lock_of_a_dead_job_is_taken_over(tmp_path: Path) -> None:
    calm, hunted = tmp_path / "calm", tmp_path / "hunted"
    assert train(calm, **SETTINGS).returncode == 0
    first = start(command(hunted, **SETTINGS), SLURM_JOB_ID="4711")
    wait_for_step(hunted, 8, first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert train(hunted, **SETTINGS).returncode == 0
    assert differing(final_state(calm), final_state(hunted)) == []
