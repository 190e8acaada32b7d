"""Programs in forks of one process that has imported torch: real programs with their own memory, exit code
and output, and no seconds for a start. Each still imports all of the project's own modules itself.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = ["numpy", "torch", "torch._dynamo", "torch.distributed", "tqdm", "tests.forked", "tests.freeze"]
# variables that the interpreter or a library reads but once, when it starts
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MKL_", "TORCH", "MALLOC_", "GLIBC_")
REAL_START = "REAL_START"  # set in the environment: every program is started from nothing
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def at_start(env: dict[str, str]) -> dict[str, str]:
    """The settings of an environment that only a start reads."""
    return {name: value for name, value in env.items() if name.startswith(READ_AT_START)}


def can_fork(words: list[str], env: dict[str, str]) -> bool:
    """Whether a fork is as good as a start: a program of the repository, under the settings that this
    process was started with.
    """

    is_program = len(words) > 1 and words[0] == sys.executable and words[1].endswith(".py")
    return is_program and REAL_START not in os.environ and at_start(env) == at_start(dict(os.environ))


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
    """In a fork: `python WORDS...`, which begin with a file or with -m and a module."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
            runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.stdout.flush()


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
