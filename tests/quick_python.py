"""An environment for scripts under test whose `python` is a fork of the process that has imported torch, as
in tests.forked: with the caller's descriptors, folder and variables, and its exit code. What such a fork does
is that of `python`; what depends on its parent or its terminal is not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests import forked

ROOT = Path(__file__).parent.parent
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PYTHON = """#!{python} -IS
import json, os, signal, socket, sys

door = socket.socket(socket.AF_UNIX)
door.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(door, [len(call).to_bytes(8, "big")], [0, 1, 2])
door.sendall(call)
answers = door.makefile()
pid = int(answers.readline())
for number in {signals}:
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def _work(words: list[str], folder: str, env: dict[str, str], descriptors: list[Connection]) -> None:
    """In a fork."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor.fileno(), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # the fork's own, until it ends
    sys.path = [path for path in sys.path if path not in ("", str(ROOT))]
    forked._work([sys.executable, *words], folder, [], env)


class _Handler(socketserver.StreamRequestHandler):
    """Of one `python`, from its call to its end."""

    def handle(self) -> None:
        size, descriptors, *_ = socket.recv_fds(self.request, 8, 3)
        words, folder, env = json.loads(self.rfile.read(int.from_bytes(size, "big")))
        process = multiprocessing.get_context("forkserver").Process(
            target=_work, args=(words, folder, env, list(map(Connection, descriptors)))
        )
        process.start()
        self.wfile.write(b"%d\n" % process.pid)
        if process.sentinel not in wait([process.sentinel, self.request]):  # `python` was killed
            process.kill()
        process.join()
        self.wfile.write(b"%d\n" % process.exitcode)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def environment(folder: Path) -> Iterator[Path]:
    """A new folder to be VENV_DIR, as long as this lasts."""
    (folder / "bin").mkdir(parents=True)
    for stamp in Path(sys.prefix).glob(".installed-*"):
        (folder / stamp.name).touch()
    address = str(folder / "door")
    python = folder / "bin" / "python"
    python.write_text(
        PYTHON.format(python=sys.executable, address=address, signals=[int(number) for number in PASSED_ON])
    )
    python.chmod(0o755)
    with _Server(address, _Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield folder
        server.shutdown()
