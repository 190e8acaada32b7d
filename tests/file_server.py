"""A web server on localhost that fails in the ways that networks do, and remembers what it was asked."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

PIECE = 1 << 16
Site = TypeVar("Site")


@dataclass(frozen=True)
class Fault:
    """How one answer goes wrong."""

    status: int = 0  # answer this code instead of content
    after: int | None = None  # stop after so many bytes of content...
    reset: bool = False  # ...by a TCP reset instead of an orderly end
    stall: float = 0.0  # seconds of silence before the content


@dataclass
class FileServer:
    """Files by path, the faults of the next GETs of each, and the requests as (method, path, Range or
    None).
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)  # after the listed faults
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    pause: float = 0.0  # before every piece of content
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def add(self, path: str, content: bytes, with_sum: bool = True) -> str:
        """Serve content, and its sum beside it; its address."""
        self.files[path] = content
        if with_sum:
            self.files[f"{path}.sha256"] = (
                f"{hashlib.sha256(content).hexdigest()}  {path.rsplit('/', 1)[-1]}\n".encode()
            )
        return self.address + path

    def asked(self, path: str) -> list[str | None]:
        """The Range of every GET of a path."""
        return [span for method, requested, span in self.requests if (method, requested) == ("GET", path)]

    def starts(self, path: str) -> list[int]:
        """The byte at which every GET of a path was to begin."""
        return [int(span.removeprefix("bytes=").rstrip("-")) if span else 0 for span in self.asked(path)]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        try:
            self.answer(with_content=True)
        except (BrokenPipeError, ConnectionResetError):  # the client is gone
            self.close_connection = True

    def answer(self, with_content: bool) -> None:
        site: FileServer = self.server.site  # type: ignore[attr-defined]
        span = self.headers.get("Range")
        site.requests.append((self.command, self.path, span))
        pending = site.faults.get(self.path, [])
        fault = (
            (pending.pop(0) if pending else site.always.get(self.path, Fault())) if with_content else Fault()
        )
        content = site.files.get(self.path)
        if fault.status or content is None:
            return self.only_status(fault.status or 404)
        begin = int(span.removeprefix("bytes=").split("-")[0]) if span and site.ranges else 0
        if begin and begin >= len(content):
            return self.only_status(416, {"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if site.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        for name, value in site.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_content:
            time.sleep(fault.stall)
            end = len(content) if fault.after is None else min(len(content), begin + fault.after)
            for place in range(begin, end, PIECE):
                time.sleep(site.pause)
                self.wfile.write(content[place : min(place + PIECE, end)])
        if fault.after is not None and fault.reset:
            time.sleep(0.02)  # let the client take what was sent
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        return None

    def only_status(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # connections broken on purpose

    def shutdown_request(self, request: object) -> None:
        if request.fileno() >= 0:  # type: ignore[attr-defined]
            super().shutdown_request(request)  # type: ignore[arg-type]


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], make_site: Callable[[str], Site]) -> Iterator[Site]:
    """A server on a free port, and the site at its address that the handler finds as `self.server.site`."""
    server = QuietServer(("127.0.0.1", 0), handler)
    site = server.site = make_site(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
