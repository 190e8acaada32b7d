"""A long training of a small model with an evaluation and a save every few seconds: does anything grow?

    python tests/chaos/soak.py --minutes 120 --out FOLDER

Looks at the process every few seconds, and compares the last part with the first: a half each, an hour each
of two hours. Time per step is the processor's, in the least disturbed minutes of each half: other work on a
shared machine makes a step take half as long again. One line of JSON; exit code 1 where something has grown
by more than the limit.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

# ruff: noqa: E402
from processes import die_with
from tests.programs import ROOT, STOPPED, command, environment, status

LIMIT = 0.02
GROWS = ("memory_kib", "handles", "threads", "cpu_ms_per_step")
LOOK_SECONDS = 5.0
QUIET_LOOKS = 60  # five minutes
WARM_SECONDS = 60.0  # left out of the comparison, at most a tenth: allocators and caches fill
TICKS = os.sysconf("SC_CLK_TCK")


def look(pid: int, step: int) -> dict[str, float]:
    """Memory, handles, threads and processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    memory = next(
        line
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss_Anon")
    )
    return {
        "time": time.time(),
        "step": step,
        "memory_kib": int(memory.split()[1]),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(fields[17]),
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / TICKS,
    }


def cpu_ms_per_step(rows: list[dict[str, float]]) -> float:
    """Of the quickest five minutes; status.json is some seconds late, so that shorter ones tell less."""
    span = min(QUIET_LOOKS, len(rows) - 1)
    return 1000 * min(
        (b["cpu_seconds"] - a["cpu_seconds"]) / max(1, b["step"] - a["step"])
        for a, b in zip(rows, rows[span:], strict=False)
    )


def compare(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Medians of the first and of the last half; of what goes up and down with each save, that is what
    lasts.
    """
    half = len(rows) // 2
    figures = {
        name: {
            **{key: statistics.median(row[key] for row in part) for key in GROWS[:3]},
            "cpu_ms_per_step": cpu_ms_per_step(part),
        }
        for name, part in {"first": rows[:half], "last": rows[half:]}.items()
    }
    figures["growth"] = {key: figures["last"][key] / figures["first"][key] - 1 for key in GROWS}
    return figures


def soak(minutes: float, out: Path) -> dict[str, dict[str, float]]:
    """Train for so long, and return what `compare` says; rows go to OUT/soak.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float]] = []
    warm = min(WARM_SECONDS, 6 * minutes)
    with open(out / "soak.jsonl", "w") as file, open(out / "console.log", "w") as console:
        process = subprocess.Popen(
            command(
                out, iterations=10**9, warmup_percent=0, eval_freq=20, save_checkpoint_freq=20, log_freq=10
            ),
            cwd=ROOT,
            env=environment(),
            stdout=console,
            stderr=subprocess.STDOUT,
            preexec_fn=functools.partial(die_with, os.getpid()),
        )
        while process.poll() is None and not list(out.glob("*/*/run/status.json")):
            time.sleep(0.1)
        begin = time.time()
        try:
            while time.time() - begin < 60 * minutes + warm:
                time.sleep(min(LOOK_SECONDS, minutes))
                assert process.poll() is None, (out / "console.log").read_text()[-2000:]
                if time.time() - begin > warm:
                    rows.append(look(process.pid, status(out)["itr"]))
                    print(json.dumps(rows[-1]), file=file, flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    assert process.returncode == STOPPED, (out / "console.log").read_text()[-2000:]
    return {
        **compare(rows),
        "run": {
            "minutes": minutes,
            "steps": rows[-1]["step"],
            "evaluations_and_saves": rows[-1]["step"] // 20,
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = soak(given.minutes, given.out)
    print(json.dumps(found))
    sys.exit(any(found["growth"][key] > LIMIT for key in GROWS))
