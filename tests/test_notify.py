"""A webhook is told how a chain ended, in the form that it takes, and its address stands in no message."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from iridis.notify import request
from tests.programs import ROOT

Received = list[tuple[dict[str, str], str]]


@pytest.fixture
def server() -> Iterator[tuple[str, Received]]:
    """An address, and what was sent there; one that ends in /refused is answered with an error."""
    received: Received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(
                (dict(self.headers), self.rfile.read(int(self.headers["Content-Length"])).decode())
            )
            self.send_response(403 if self.path.endswith("/refused") else 200)
            self.end_headers()

        def log_message(self, *unused: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/secret", received
        listening.shutdown()
        thread.join()


def notify(url: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iridis.notify", "run: stopped"],
        input="no room\nlogs: /x",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"NOTIFY_URL": url, **env},
        timeout=60,
    )


def test_a_topic_of_ntfy_gets_the_subject_as_title(server: tuple[str, Received]) -> None:
    assert notify(server[0]).returncode == 0
    ((headers, body),) = server[1]
    assert (headers["Title"], body) == ("run: stopped", "no room\nlogs: /x")


def test_a_webhook_of_slack_s_form_gets_text(server: tuple[str, Received]) -> None:
    assert notify(server[0], NOTIFY_FORM="slack").returncode == 0
    assert json.loads(server[1][0][1]) == {"text": "run: stopped\nno room\nlogs: /x"}


def test_slack_is_known_by_its_name() -> None:
    assert request("https://hooks.slack.com/services/x", "", "a", "b").data == b'{"text": "a\\nb"}'


@pytest.mark.parametrize(
    "url",
    [
        "{}/refused",
        "http://127.0.0.1:1/secret",
        "secret",
        "http://[secret",
        "ftp://secret/x",
        "{}/secret with a space",
    ],
)
def test_where_it_cannot_be_told_one_line_says_so_without_the_address(
    server: tuple[str, Received], url: str
) -> None:
    done = notify(url.format(server[0]))
    assert done.returncode == 1 and "secret" not in done.stdout + done.stderr
    assert done.stderr.startswith("warning: NOTIFY_URL") and done.stderr.count("\n") == 1
