"""An environment for scripts under test whose `python` is a fork of a process that has imported torch:
`tests.forked` for programs that shell scripts and jobs start.

    python -m tests.forks FOLDER      # serves FOLDER/venv/bin/python until it is killed

That `python` (fork_client.py) is a process of the job: it hands over its arguments, environment and
descriptors, passes on the signals that it gets, and ends as the fork does. The fork dies with it. What a fork
cannot be (a program under a limit of memory; torchrun, whose workers are the job's too) is started from
nothing.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from tests.forked import PRELOADED, at_start, begin, interpret

ROOT = Path(__file__).parent.parent
CLIENT = Path(__file__).with_name("fork_client.py")
REQUEST_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_context = multiprocessing.get_context("fork")


def make_environment(folder: Path) -> Path:
    """A copy of this interpreter's environment, by links, with that `python`."""
    venv = folder / "venv"
    (venv / "bin").mkdir(parents=True)
    for path in (*Path(sys.prefix).glob(".installed-*"), *Path(sys.prefix, "bin").iterdir()):
        (venv / path.relative_to(sys.prefix)).symlink_to(path)
    python = venv / "bin" / "python"
    python.unlink()
    words = (sys.executable, "-IS", str(CLIENT), sys.executable, str(folder / "forks.socket"))
    python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    python.chmod(0o755)
    return venv


SERVER_ENV = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def words_of_server(folder: Path) -> tuple[str, ...]:
    """The command that serves an environment made in a folder, with SERVER_ENV."""
    return sys.executable, "-m", "tests.forks", str(folder)


@contextmanager
def environment(folder: Path) -> Iterator[Path]:
    """A new environment in a folder, to be VENV_DIR, as long as this lasts."""
    from processes import die_with

    venv, tests = make_environment(folder), os.getpid()
    env = {**os.environ, **SERVER_ENV}
    with subprocess.Popen(
        words_of_server(folder), cwd=ROOT, env=env, start_new_session=True, preexec_fn=lambda: die_with(tests)
    ) as server:
        try:
            while not (folder / "forks.socket").exists():
                assert server.poll() is None, "the server of forks has ended"
                time.sleep(0.05)
            yield venv
        finally:
            server.kill()


def become(request: dict[str, Any], descriptors: list[int], connections: list[socket.socket]) -> None:
    """In a fork: be the program that a client asks for. connections: of the server."""
    for connection in connections:
        connection.close()
    # as `processes.die_with`, which the program imports from its own clone
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    del sys.path[0]  # this repository
    begin(request["folder"], descriptors, request["env"])
    for descriptor in descriptors:
        os.close(descriptor)
    interpret(request["words"])


class Forks:
    """A process for each client."""

    def __init__(self, path: Path, settings: dict[str, str]) -> None:
        """settings: the environment that this process was started with."""
        self.at_start = at_start(settings)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen(128)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.forks: dict[int, tuple[ForkProcess, socket.socket]] = {}  # by a descriptor of the fork
        self.descriptors: dict[socket.socket, int] = {}  # the same, by the client

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    self.admit(self.listener.accept()[0])
                elif key.fileobj in self.forks:
                    self.tell_end(key.fd)
                elif key.fileobj in self.descriptors:
                    self.pass_on(key.fileobj)

    def admit(self, client: socket.socket) -> None:
        """Fork for a client, or tell it to start its program itself."""
        message, descriptors, _, _ = socket.recv_fds(client, REQUEST_BYTES, 2)
        request = json.loads(message or "null")
        if request is None:  # killed before it could ask
            client.close()
        elif at_start(request["env"]) != self.at_start:
            client.send(b"start")
            client.close()
        else:
            connections = [self.listener, client, *self.descriptors]
            fork = _context.Process(target=become, args=(request, descriptors, connections))
            fork.start()
            descriptor = os.pidfd_open(fork.pid)
            self.forks[descriptor], self.descriptors[client] = (fork, client), descriptor
            self.selector.register(descriptor, selectors.EVENT_READ)
            self.selector.register(client, selectors.EVENT_READ)
        for descriptor in descriptors:
            os.close(descriptor)

    def pass_on(self, client: socket.socket) -> None:
        """The signals that a client got; where it was killed, SIGKILL."""
        numbers = b""
        with suppress(ConnectionResetError):
            numbers = client.recv(64)
        for number in numbers or (signal.SIGKILL,):
            signal.pidfd_send_signal(self.descriptors[client], number)
        if not numbers:
            self.selector.unregister(client)

    def tell_end(self, descriptor: int) -> None:
        """Tell a client how its fork has ended."""
        fork, client = self.forks.pop(descriptor)
        fork.join()
        self.selector.unregister(descriptor)
        os.close(descriptor)
        del self.descriptors[client]
        if client in self.selector.get_map():
            self.selector.unregister(client)
            with suppress(OSError):  # it was killed at the same moment
                client.send(str(fork.exitcode).encode())
        client.close()


def main(folder: Path) -> None:
    settings = dict(os.environ)  # torch adds to it
    for name in ("matplotlib.pyplot", *PRELOADED):
        import_module(name)
    Forks(folder / "forks.socket", settings).serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
