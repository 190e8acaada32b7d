"""Everything that only a GPU can show, as one table: is what it computes right, and how fast is it?

    bash bench/gpu.sh [--minutes 8] [--cpu] [--only equal resume] [--output FILE]

Needs the repository, torch and NumPy. Each part is a process with a time limit of its own, so that one that
fails or hangs does not hide the rest. Writes a JSON file after each part, and beside it, to FILE.log, what
failed parts have said; `python -m report gpu FILE...` sets several side by side. Exit codes: 0 nothing
failed, 1 something did, or FILE could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu.parts import PARTS, Part
from bench.gpu.processes import json_lines, last_line, rows_of, run
from bench.gpu.rows import FAIL, SKIPPED, row
from config import Arguments, guarded
from errors import UserError
from files import try_to_write, write_json
from processes import code_facts
from report.gpu import FORMAT, counted, table

PROG = "bench/gpu.sh"
LOOK_SECONDS = 120.0  # that the first use of torch and of a driver may take
LEAST_SECONDS = 20.0  # of a part's limit
LEAST_SHARE = 0.5  # of a part's own seconds, below which it is not begun
INTERRUPTED = 130


def machine_facts(device: str) -> dict[str, Any]:
    """Raises UserError where torch, or the device, is not there."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        code, out, err = run(["-m", "bench.gpu.machine", device], LOOK_SECONDS, Path(place))
    if code is None:
        raise UserError(f"torch did not name its devices within {LOOK_SECONDS:.0f} s: a driver hangs")
    if code or not json_lines(out):
        raise UserError(f"torch cannot be asked for its devices: {last_line(err)}")
    facts = json_lines(out)[-1]
    if not facts["count"]:
        built = "" if facts["cuda"] else ", and this torch is built without it"
        raise UserError(f"there is no CUDA device here{built}; --cpu runs the same table on the CPU")
    return facts


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = Arguments(
        prog=PROG,
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--cpu", action="store_true", help="the same parts on the CPU, in small sizes")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts whose names begin so")
    parser.add_argument("--output", type=Path, help="JSON file; default reports/gpu-TIME.json")
    parser.add_argument("--list", action="store_true", help="print the names of the parts")
    return parser.parsed(argv)


def chosen(only: list[str] | None) -> list[Part]:
    """Raises UserError for a word that no part begins with."""
    unknown = [word for word in only or () if not any(part.name.startswith(word) for part in PARTS)]
    if unknown:
        names = ", ".join(part.name for part in PARTS)
        raise UserError(f"--only {' '.join(unknown)}: no part begins so; there are: {names}")
    return [part for part in PARTS if only is None or part.name.startswith(tuple(only))]


class Run:
    """The parts, one after the other, within a time, and what they have told so far."""

    def __init__(self, parts: list[Part], machine: dict[str, Any], minutes: float, output: Path) -> None:
        self.parts, self.machine, self.output = parts, machine, output
        self.log = output.with_name(f"{output.name}.log")
        self.unwritten = ""  # why the file lacks the last rows
        self.devices = machine["count"] if machine["device"] == "cuda" else 0
        self.began = time.monotonic()
        self.ends = self.began + 60 * minutes
        self.result: dict[str, Any] = {
            "format": FORMAT,
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "minutes": minutes,
            "machine": machine,
            "code": code_facts(),
            "rows": [],
        }

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.ends - time.monotonic()

    def limit(self, index: int) -> float:
        """Seconds for a part: its own, or its share of what is left where that is more, so that what others
        leave over goes to the rest.
        """
        part = self.parts[index]
        wanted = sum(each.seconds for each in self.parts[index:] if each.needs <= self.devices)
        share = self.left * part.seconds / wanted
        return max(LEAST_SECONDS, share, min(part.seconds, self.left))

    def take(self, index: int) -> list[dict[str, Any]]:
        part = self.parts[index]
        if part.needs > self.devices:
            return [row(part.name, SKIPPED, note=f"needs {part.needs} CUDA devices, here are {self.devices}")]
        if self.left < LEAST_SHARE * part.seconds:
            return [row(part.name, SKIPPED, note="no time is left for it: give more --minutes, or --only")]
        return rows_of(part, self.machine["device"], self.machine["name"], self.limit(index), self.log)

    def all(self) -> bool:
        """Take the parts; False where Ctrl-C or a signal came between."""
        for index, part in enumerate(self.parts):
            begin = time.monotonic()
            print(f"[{index + 1}/{len(self.parts)}] {part.name} ... ", end="", flush=True)
            try:
                rows = self.take(index)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
                for left in self.parts[index:]:
                    self.keep(left, [row(left.name, SKIPPED, note="interrupted")])
                return False
            self.keep(part, rows)
            print(f"{counted(rows)}, {time.monotonic() - begin:.0f} s", flush=True)
        return True

    def keep(self, part: Part, rows: list[dict[str, Any]]) -> None:
        self.result["rows"] += [{"part": part.name, **each} for each in rows]
        self.result["seconds"] = round(time.monotonic() - self.began, 1)
        self.unwritten = ""
        try:
            write_json(self.output, self.result)
        except OSError as error:  # what was found is still printed
            self.unwritten = f"{self.output} is not written: {error.strerror}"
            print(f"warning: {self.unwritten}", file=sys.stderr, flush=True)


def interrupt(*unused: object) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        args = parsed(argv)
        if args.list:
            print("\n".join(part.name for part in PARTS))
            return 0
        if not 0 < args.minutes < 24 * 60:
            raise UserError(f"--minutes {args.minutes:g}: must be above 0, and less than a day")
        parts = chosen(args.only)
        output = args.output or Path("reports") / time.strftime("gpu-%Y%m%d-%H%M%S.json")
        if output.exists():
            raise UserError(f"--output {output}: is there already, give another name")
        machine = machine_facts("cpu" if args.cpu else "cuda")
        try_to_write(output.parent)
        print(f"{machine['name']}, torch {machine['torch']}, {len(parts)} parts", flush=True)
        taken = Run(parts, machine, args.minutes, output)
        signal.signal(signal.SIGTERM, interrupt)
        is_whole = taken.all()
        where = [taken.unwritten or f"written to {output}"]
        if taken.log.exists():
            where.append(f"what failed parts have said: {taken.log}")
        print("\n".join(["", *table([taken.result], [output.name]), "", *where]))
        if not is_whole:
            return INTERRUPTED
        has_failed = any(each["verdict"] == FAIL for each in taken.result["rows"])
        return int(has_failed or bool(taken.unwritten))

    return guarded(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
