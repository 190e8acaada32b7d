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
KILL_SECONDS = 10.0  # that a killed process may take to end: one that waits for a driver may never
EVIDENCE_BYTES = 2**16  # of each output of a part that has failed


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
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILL_SECONDS)
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


def ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}{': out of memory?' if -code == signal.SIGKILL else ''}"


def tail(path: Path) -> str:
    """The end of a file, as text."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - EVIDENCE_BYTES))
        return file.read().decode(errors="replace")


def keep_evidence(log: Path, part: Part, folder: Path) -> None:
    """Append to a log what a part has written, and the console of trainings that it has started, before
    their folder is removed. Where that cannot be written, a line says so.
    """
    outputs = [folder / "stdout", folder / "stderr", *sorted(folder.rglob("console.log"))]
    try:
        with log.open("a") as file:
            for path in outputs:
                file.write(f"=== {part.name}: {path.relative_to(folder)}\n{tail(path)}\n")
    except OSError as error:
        print(f"warning: {log}: {error.strerror}", file=sys.stderr, flush=True)


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


def rows_of(
    part: Part, device: str, card: str | None, seconds: float, log: Path | None = None
) -> list[dict[str, Any]]:
    """Run a part to its end or its limit. log: gets the evidence, where a row is FAIL."""
    more = part.small if device == "cpu" else part.large
    with tempfile.TemporaryDirectory(prefix="gpu_bench_", ignore_cleanup_errors=True) as place:
        filled = {"{device}": device, "{folder}": place}
        words = [filled.get(word, word.replace("{folder}", place)) for word in (*part.command, *more)]
        code, out, err = run(words, seconds, Path(place))
        rows = told_by(part, card, seconds, code, out, err)
        if log is not None and any(each["verdict"] == FAIL for each in rows):
            keep_evidence(log, part, Path(place))
    return rows


def told_by(
    part: Part, card: str | None, seconds: float, code: int | None, out: str, err: str
) -> list[dict[str, Any]]:
    """The rows of a part that has ended so, with a row for each figure that it has not told."""
    lines = json_lines(out)
    why = ""
    if code is None:
        why = f"no end within its {seconds:.0f} s"
    elif code:
        why = f"{ended(code)}: {last_line(err) or last_line(out) or 'it said nothing'}"
    if part.says:
        return [row(part.says, FAIL if why else PASS, note=why or last_line(out))]
    if part.figures and lines:
        rows = [figure_row(figure, lines[-1], card) for figure in part.figures]
    elif part.figures:
        return [row(figure.name, FAIL, note=why or "it told nothing") for figure in part.figures]
    else:
        rows = lines
    if why or not rows:
        rows.append(row(part.name, FAIL, note=why or "it told nothing"))
    return rows
