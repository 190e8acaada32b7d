"""Which signals stop a training, and which do not: terminals that close, nohup, launchers.

Resuming is test_training.py's.
"""

from __future__ import annotations

import fcntl
import functools
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.world import World
from optim.stopping import Stopper
from processes import die_with
from tests.programs import ROOT, STOPPED, environment, flags, folder, start, status, wait_for_step

LONG: dict[str, Any] = {
    "iterations": 100_000,
    "eval_freq": 0,
    "save_checkpoint_freq": None,
    "n_embd": 8,
    "n_layer": 3,
    "sequence_length": 16,
}


def stopper(**more: Any) -> Stopper:
    return Stopper(World(torch.device("cpu")), [], None, time.time(), **more)


@pytest.fixture
def no_handlers() -> Any:
    """The signals as a shell leaves them."""
    numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
    old = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR1])
def test_a_signal_stops(no_handlers: None, number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stopper() as stop:
        assert not stop.poll()
        signal.raise_signal(number)
        assert (stop.poll(), stop.reason, stop.by_hand) == (True, number.name, False)
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_hangup_that_nohup_had_ignored_stays_ignored(no_handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopper() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.poll()


def test_only_the_signals_that_are_named_stop(no_handlers: None) -> None:
    with stopper(signals=["SIGXCPU"]) as stop:
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        signal.raise_signal(signal.SIGXCPU)
        assert (stop.poll(), stop.reason) == (True, "SIGXCPU")


def test_a_signal_that_came_before_the_handlers_is_not_lost(no_handlers: None) -> None:
    # as distributed.torchrun starts its workers
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        # to this thread: one of a library's would not hold it back, and the process would end
        signal.raise_signal(signal.SIGUSR1)
        with stopper() as stop:
            assert (stop.poll(), stop.reason) == (True, "SIGUSR1")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def test_an_interrupt_that_arrives_twice_at_once_is_one(no_handlers: None) -> None:
    with stopper() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # of the terminal, and passed on by the launcher
        assert stop.poll()


def launched(results: Path, processes: int, **changes: Any) -> list[str]:
    """A training as the jobs start it."""
    launcher = (
        ["-m", "distributed.torchrun", "--standalone", "--nproc_per_node", str(processes)]
        if processes > 1
        else []
    )
    return [sys.executable, *launcher, "main.py", *flags(results, **{**LONG, **changes})]


def take_terminal(parent: int) -> None:
    """Make standard input the terminal whose closing this session is told of, also where these tests run
    under nohup.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    die_with(parent)


def show(terminal: int, closing: threading.Event) -> None:
    """Read a terminal, as one does that shows it, until it is to be closed."""
    while not closing.is_set():
        os.read(terminal, 1 << 16)
    os.close(terminal)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_that_closes_stops_the_training_with_its_work_saved(
    tmp_path: Path, processes: int
) -> None:
    (mine, theirs), closing = pty.openpty(), threading.Event()
    process = subprocess.Popen(
        launched(tmp_path, processes),
        cwd=ROOT,
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=functools.partial(take_terminal, os.getpid()),
        text=True,
    )
    os.close(theirs)
    threading.Thread(target=show, args=(mine, closing), daemon=True).start()
    wait_for_step(tmp_path, 9, process)
    closing.set()
    assert process.wait(60) == (STOPPED if processes == 1 else 0)
    told = status(tmp_path)
    assert (told["state"], told["reason"]) == ("stopped", "SIGHUP")
    assert (folder(tmp_path) / f"ckpt_{told['itr']}.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_passes_a_signal_on(tmp_path: Path, number: signal.Signals) -> None:
    process = start(launched(tmp_path, 2))
    wait_for_step(tmp_path, 9, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert (status(tmp_path)["state"], status(tmp_path)["reason"]) == ("stopped", number.name)


@pytest.mark.slow
def test_several_processes_under_nohup_outlive_a_hangup(tmp_path: Path) -> None:
    process = start(["nohup", *launched(tmp_path, 2)])
    wait_for_step(tmp_path, 9, process)
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    process.send_signal(signal.SIGUSR2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert status(tmp_path)["reason"] == "SIGUSR2"
