"""One part in a process of its own, with a time limit: what it told until its end, or until it was ended."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.gpu.parts import Figure, Part
from bench.gpu.rows import FAIL, PASS, judged, row
from processes import die_with

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).resolve().parent / "stand_in"
SHOWN = 300  # characters of an error


def environment() -> dict[str, str]:
    """As the parts have it: the repository on the path, and nothing that reaches for a network."""
    folders = [str(ROOT)]
    if importlib.util.find_spec("tqdm") is None:
        folders.append(str(STAND_IN))
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*folders, before] if before else folders)
    return {**os.environ, "PYTHONPATH": path, "WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1"}


def run(words: list[str], seconds: float, folder: Path) -> tuple[int | None, str, str]:
    """Exit code (None: it had to be ended), and what was written to stdout and stderr so far."""
    out, err = folder / "stdout", folder / "stderr"
    with out.open("w") as to_out, err.open("w") as to_err:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=to_out,
            stderr=to_err,
            start_new_session=True,
            preexec_fn=functools.partial(die_with, os.getpid()),
        )
        code = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(seconds)
        finally:  # what it has started ends with it, also where Ctrl-C ends the waiting
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, out.read_text(errors="replace"), err.read_text(errors="replace")


def json_lines(text: str) -> list[dict[str, Any]]:
    """Those of a part's lines that are objects; a last line may be cut short."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:SHOWN] if lines else ""


def figure_row(figure: Figure, told: dict[str, Any], card: str | None) -> dict[str, Any]:
    value: Any = told
    for key in figure.path:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        return row(figure.name, FAIL, note=f"the script has not told its {'.'.join(figure.path)}")
    verdict, target = None, ""
    if figure.at_least is not None:
        verdict, target = judged(value >= figure.at_least, card), f"at least {figure.at_least:g}"
    if figure.at_most is not None:
        verdict, target = judged(value <= figure.at_most, card), f"at most {figure.at_most:g}"
    return row(figure.name, verdict, value, figure.unit, target)


def rows_of(part: Part, device: str, card: str | None, seconds: float) -> list[dict[str, Any]]:
    """Run a part to its end or its limit."""
    more = part.small if device == "cpu" else part.large
    with tempfile.TemporaryDirectory(prefix="gpu_bench_") as place:
        filled = {"{device}": device, "{folder}": place}
        words = [filled.get(word, word.replace("{folder}", place)) for word in (*part.command, *more)]
        code, out, err = run(words, seconds, Path(place))
    lines = json_lines(out)
    if part.says:
        rows = [row(part.says, PASS, note=last_line(out))] if code == 0 else []
    elif part.figures:
        rows = [figure_row(figure, lines[-1], card) for figure in part.figures] if lines else []
    else:
        rows = lines
    if code is None:
        rows.append(row(part.says or part.name, FAIL, note=f"no end within its {seconds:.0f} s"))
    elif code:
        why = last_line(err) or last_line(out) or "it said nothing"
        rows.append(row(part.says or part.name, FAIL, note=f"exit code {code}: {why}"))
    elif not rows:
        rows.append(row(part.name, FAIL, note="it told nothing"))
    return rows
