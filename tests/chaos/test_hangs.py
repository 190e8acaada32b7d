"""A process that hangs ends by itself, with its stacks, and the chain goes on; one that was only suspended
goes on.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from iridis.chain import AGAIN, Cause, judge
from optim.reader import Record
from optim.selftest import differing
from tests.chaos.processes import workers
from tests.chaos.test_kills import SETTINGS
from tests.programs import command, final_state, folder, start, train, trained, wait_for_step

pytestmark = pytest.mark.slow

MINUTES = 0.25
TORCHRUN_SECONDS = 30  # that it gives a worker to end, before it kills it


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("calm"), processes=2, **SETTINGS)


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, float]:
    """A training of two processes of which one stopped: its folder, exit code, errors, and seconds until
    it was over.
    """
    results = tmp_path_factory.mktemp("hung")
    process = start(command(results, 2, **SETTINGS, watchdog_minutes=MINUTES))
    second = workers(process)[1]
    wait_for_step(results, 7, process)
    os.kill(second, signal.SIGSTOP)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=120)
    return results, process.returncode, errors, time.monotonic() - begin


def test_others_notice_in_time_and_end(hung: tuple[Path, int, str, float]) -> None:
    _, code, _, seconds = hung
    assert code not in (0, 2)
    assert seconds < 60 * MINUTES + TORCHRUN_SECONDS + 15


def test_process_that_waits_says_where_and_shows_its_stacks(hung: tuple[Path, int, str, float]) -> None:
    _, _, errors, _ = hung
    assert "main.py: error: watchdog: process 0 of 2, after step" in errors
    assert "has not got on for 0.25 minutes; stacks follow" in errors
    assert 'training.py", line' in errors.split("stacks follow")[1]


def test_chain_goes_on_for_the_watchdogs_reason(hung: tuple[Path, int, str, float]) -> None:
    results, code, _, _ = hung
    outcome, reason = judge(folder(results), code, Cause.NONE, Record(folder(results)).outcome)
    assert outcome == AGAIN and "watchdog: process 0 of 2" in reason


def test_next_job_ends_with_the_same_bits(hung: tuple[Path, int, str, float], calm: Path) -> None:
    assert train(hung[0], processes=2, **SETTINGS).returncode == 0
    assert differing(final_state(calm), final_state(hung[0])) == []


def test_suspended_training_goes_on_when_it_is_resumed(tmp_path: Path) -> None:
    """SLURM suspends all processes of a job: no time passes for any of them."""
    process = start(command(tmp_path, **SETTINGS, watchdog_minutes=MINUTES))
    wait_for_step(tmp_path, 7, process)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(60 * MINUTES + 3)
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
