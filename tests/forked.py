"""Programs in forks of one process that has imported torch: real programs with their own memory, exit code
and output, and no seconds for a start. Each still imports all of the project's own modules itself.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = ["numpy", "torch", "torch._dynamo", "torch.distributed", "tqdm", "tests.forked", "tests.freeze"]
# variables that the interpreter or a library reads but once, when it starts
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MKL_", "TORCH", "MALLOC_", "GLIBC_")
TORCHRUN = "torch.distributed.run"
LAUNCHERS = (TORCHRUN, "distributed.torchrun")
REAL_START = "REAL_START"  # set in the environment: every program is started from nothing
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def at_start(env: dict[str, str]) -> dict[str, str]:
    """The settings of an environment that only a start reads."""
    read = {name: value for name, value in env.items() if name.startswith(READ_AT_START)}
    read.pop("PYTHONPATH", None)  # `interpret` follows it
    return read


def can_fork(words: list[str], env: dict[str, str]) -> bool:
    """Whether a fork is as good as a start: a program in Python that starts no others itself, under the
    settings that this process was started with. torchrun is none, see `can_launch`.
    """
    is_program = (
        len(words) > 1
        and words[0] == sys.executable
        and (words[1].endswith(".py") or (words[1] in ("-m", "-c") and words[2] not in LAUNCHERS))
    )
    return is_program and REAL_START not in os.environ and at_start(env) == at_start(dict(os.environ))


def can_launch(words: list[str], env: dict[str, str]) -> bool:
    """Whether torchrun may be a fork whose workers are forks: where nothing disturbs them."""
    return words[1:3] == ["-m", TORCHRUN] and can_fork([*words[:2], "", *words[3:]], env)


def take_place(folder: str, outputs: list[str], env: dict[str, str]) -> None:
    """In a fork: what the shell and the interpreter do before a program begins."""
    begin(folder, [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in outputs], env)


def begin(folder: str, outputs: list[int], env: dict[str, str]) -> None:
    """`take_place`, where stdout and stderr are open already."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, output in enumerate(outputs, start=1):
        os.dup2(output, descriptor)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # the fork's own, until it ends
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def interpret(words: list[str]) -> None:
    """In a fork: `python WORDS...`."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    try:
        _run(*words)
    finally:
        sys.stdout.flush()


def _run(how: str, *words: str) -> None:
    """What `python how words` does, once it has started."""
    if how == "-m" and words[0] == TORCHRUN:
        sys.path.insert(0, os.getcwd())
        _launch(list(words[1:]))
    elif how == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = list(words)
        sys.modules.pop(words[0], None)  # runpy warns of a module that is there already
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        program = os.path.abspath(how)
        sys.path.insert(0, os.path.dirname(program))
        sys.argv = [how, *words]
        runpy.run_path(program, run_name="__main__")


def _launch(words: list[str]) -> None:
    """What torchrun does, but that its workers are forks of it."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda handler, words, env: Worker(words, env)
    torchrun.main(words)


def _work_of_torchrun(words: Sequence[str], env: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(env)
    _run(*words)


def _work(words: list[str], folder: str, outputs: list[str], env: dict[str, str]) -> None:
    take_place(folder, outputs, env)
    interpret(words[1:])


def code_of(process: BaseProcess, seconds: float) -> int | None:
    """Start a fork and wait for its exit code; None where it had to be killed after so many seconds."""
    process.start()
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


def run(
    words: list[str], folder: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run does it. Raises TimeoutExpired, once the program is killed."""
    with tempfile.TemporaryDirectory() as place:
        outputs = [os.path.join(place, name) for name in ("out", "err")]
        code = code_of(_context.Process(target=_work, args=(words, str(folder), outputs, env)), timeout)
        out, err = (Path(path).read_text() if os.path.exists(path) else "" for path in outputs)
    if code is None:
        raise subprocess.TimeoutExpired(words, timeout, out, err)
    return subprocess.CompletedProcess(words, code, out, err)


def _work_alone(words: list[str], folder: str, outputs: list[str], env: dict[str, str]) -> None:
    """In a fork with a session of its own, which ends with the tests."""
    from processes import die_with

    os.setsid()
    die_with(os.getppid())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _work(words, folder, outputs, env)


class Fork:
    """A fork that runs on, with what is used of subprocess.Popen."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        process.start()
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Worker(Fork):
    """`python -u PROGRAM ...` of a torchrun that is a fork itself."""

    def __init__(self, words: Sequence[str], env: dict[str, str]) -> None:
        program = words[2:]
        super().__init__(
            multiprocessing.get_context("fork").Process(target=_work_of_torchrun, args=(program, env))
        )


class Started(Fork):
    """A program of the tests."""

    def __init__(self, words: list[str], folder: Path, env: dict[str, str]) -> None:
        with tempfile.TemporaryDirectory() as place:
            outputs = [os.path.join(place, name) for name in ("out", "err")]
            for path in outputs:
                os.mkfifo(path)
            super().__init__(_context.Process(target=_work_alone, args=(words, str(folder), outputs, env)))
            # opened as the fork opens its ends, one after the other
            self.stdout, self.stderr = map(open, outputs)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it writes from now on, once it has ended. Raises TimeoutExpired."""
        said = {}
        readers = [
            threading.Thread(target=lambda file=file: said.update({file: file.read()}), daemon=True)
            for file in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said[self.stdout], said[self.stderr]


Running = subprocess.Popen[str] | Started
