"""Hand-written experiments and queues, and what status.py says of them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import status
from tests.programs import ROOT

NOW = time.time()
QUEUE = "4711|RUNNING|None|4711|2030-01-01T00:00:00|a|b\n50_3|PENDING|Priority|53|2030-01-02T00:00:00|job\n"


def metric(step: int, kind: str = "train", **more: Any) -> dict[str, Any]:
    clock = {"unix": NOW - 60, "tokens_per_second": 5000.0}
    values = (
        {"loss": 2.5, "lr": 1e-3, "grad_norm": 0.5} if kind == "train" else {"val_loss": 3.0, "val_pp": 20.25}
    )
    return {"kind": kind, "step": step, **values, "time": clock, **more}


def segment(number: int, start: int, end: int, seconds: float = 3600.0, **more: Any) -> dict[str, Any]:
    return {
        "segment": number,
        "job_id": "4711",
        "start_step": start,
        "end_step": end,
        "reason": "SIGUSR1",
        "seconds": seconds,
        "started": NOW - 7200,
        **more,
    }


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def experiment(
    base: Path,
    name: str = "run",
    *,
    segments: list[dict[str, Any]] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """A hand-written experiment: by default one that runs, is half done, and was updated a minute ago."""
    place = base / name
    place.mkdir(parents=True, exist_ok=True)
    state = {
        "state": "running",
        "itr": 50,
        "iterations": 100,
        "reason": "",
        "updated": NOW - 60,
        "checkpoint": 50,
        "segments": 1,
        **changes,
    }
    (place / "status.json").write_text(json.dumps(state))
    (place / "segments.jsonl").write_text(lines([segment(0, 0, 50)] if segments is None else segments))
    (place / "metrics.jsonl").write_text(
        lines([metric(40, "eval"), metric(50)] if metrics is None else metrics)
    )
    (place / "ckpt_50.pt").write_bytes(b"x" * 5000)
    return place


def write_squeue(place: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(exist_ok=True)
    (place / "squeue").write_text(f"#!/bin/sh\n{body}\n")
    (place / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")


def write_queue(place: Path, monkeypatch: pytest.MonkeyPatch, text: str = QUEUE) -> None:
    write_squeue(place, f"cat <<'END'\n{text}END", monkeypatch)


def seen(base: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What --json says of the only experiment."""
    assert status.main(["--json", str(base)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return row


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert status.main(words) == 0
    return capsys.readouterr().out


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which bad input ends."""
    with pytest.raises(SystemExit) as stopped:
        status.main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def start(*words: str, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(ROOT / "status.py"), *words], **more)


def page_of(base: Path, capsys: pytest.CaptureFixture[str]) -> str:
    said(["--html", str(base / "page.html"), str(base)], capsys)
    return (base / "page.html").read_text()


def drawn(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def job_of(place: Path, prefix: str = "train") -> str:
    """The name that iridis/lib.sh gives a job that works on this folder."""
    script = (
        f"source iridis/lib.sh; NAME_PREFIX={prefix}; name_job {shlex.quote(str(place.resolve()))}; printf %s"
        ' "$JOB_NAME"'
    )
    return subprocess.run(
        ["/bin/bash", "-c", script, "iridis/lib.sh"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def pending(name: str, number: str = "99", reason: str = "Resources") -> str:
    return f"{number}|PENDING|{reason}|{number}|N/A|{name}\n"
