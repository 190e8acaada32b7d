"""Downloads from the hub, with its own client."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from data.tokenize import RAW_OWT2
from tests.downloads import BODY, HUB_TAR, MIB, SUM, call, command, left, one_error, target
from tests.file_server import Fault, FileServer
from tests.programs import ROOT, run, start

pytestmark = pytest.mark.usefixtures("local")


@pytest.fixture
def hub(site):
    site.files[HUB_TAR] = BODY
    site.headers.update(
        {
            "X-Repo-Commit": "a" * 40,
            "ETag": '"0"',
            "X-Linked-Etag": f'"{SUM}"',
            "X-Linked-Size": str(len(BODY)),
        }
    )
    return site


def hub_environment(site: FileServer, root: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": site.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(root / "hf"),
        "HF_HUB_OFFLINE": "0",
    }


def hub_run(site: FileServer, root: Path) -> subprocess.CompletedProcess[str]:
    return run(command(root, "--full"), **hub_environment(site, root))


@pytest.mark.slow
def test_hub_gives_the_same_bytes(hub, tmp_path):
    outcome = hub_run(hub, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert target(tmp_path).read_bytes() == BODY
    assert outcome.stdout.endswith("SHA-256 as stated\n")
    assert left(tmp_path) == [RAW_OWT2, f"{RAW_OWT2}.json"]


@pytest.mark.slow
def test_hub_with_wrong_bytes_is_refused(hub, tmp_path):
    hub.files[HUB_TAR] = BODY[:-1] + bytes([BODY[-1] ^ 1])
    outcome = hub_run(hub, tmp_path)
    assert outcome.returncode == 2, outcome.stderr
    assert f"instead of {SUM}" in outcome.stderr.splitlines()[-1]
    assert RAW_OWT2 not in left(tmp_path)


@pytest.fixture
def large_hub(hub):
    """More than the hub's client takes at once (10 MiB)."""
    content = BODY * 8
    hub.files[HUB_TAR] = content
    hub.headers.update(
        {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
    )
    return hub


@pytest.mark.slow
def test_hub_connection_that_breaks_is_resumed(large_hub, tmp_path):
    large_hub.faults[HUB_TAR] = [Fault(after=15 * MIB)]
    outcome = hub_run(large_hub, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert target(tmp_path).read_bytes() == BODY * 8
    first, second = large_hub.starts(HUB_TAR)
    assert first == 0 and 10 * MIB <= second <= 15 * MIB


@pytest.mark.slow
def test_hub_download_that_was_killed_goes_on_where_it_was(large_hub, tmp_path):
    large_hub.pause = 0.01
    process = start(command(tmp_path, "--full"), **hub_environment(large_hub, tmp_path))
    end = time.monotonic() + 60
    while not any(
        path.stat().st_size >= 5 * MIB for path in target(tmp_path).parent.rglob("*") if path.is_file()
    ):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    large_hub.pause = 0.0
    outcome = hub_run(large_hub, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert target(tmp_path).read_bytes() == BODY * 8
    assert large_hub.starts(HUB_TAR)[-1] >= 5 * MIB


@pytest.mark.slow
def test_hub_without_the_file_is_refused_in_one_line(hub, tmp_path):
    del hub.files[HUB_TAR]
    outcome = hub_run(hub, tmp_path)
    assert outcome.returncode == 2
    assert len(outcome.stderr.splitlines()) == 1 and outcome.stderr.startswith("data.download: error: ")


def test_fault_of_the_hub_client_without_a_text_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    assert call(tmp_path, "--full") == 2
    assert "RuntimeError" in one_error(capsys)


def test_hub_client_is_a_requirement():
    names = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert any(name.replace("-", "_").startswith("huggingface_hub") for name in names)
