"""Show the state of all experiments: a table, JSON, or one HTML page with curves. Needs neither torch nor
SLURM.

    python status.py [FOLDER ...]                   # default: $RESULTS_DIR, /scratch/$USER/exps,
                                                    # scratch/exps of the clone, ./exps
    python status.py --watch 30                     # redrawn every 30 s until Ctrl-C
    python status.py --html page.html FOLDER        # one file that opens without a server or a network
    python status.py --json FOLDER                  # for scripts; null is what is not known
    python status.py --sweep FILE [FOLDER]          # the cells of a sweep (docs/sweeps.md), also those that
                                                    # nothing has begun; --json and --watch as well

Folders are searched at any depth and only read; they may be mounted by sshfs or copied by rsync. Drawings of
the page are cached in $XDG_CACHE_HOME, or ~/.cache, under cotformer-status/, which may be deleted. Exit
codes: 0, or 2 with one line where a flag or folder is wrong or there is no experiment.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from config import Arguments, guarded
from errors import UserError
from files import json_text, write_atomically
from monitor.drawings import drawings_of
from monitor.page import (
    Chapter,
    evaluation_notes,
    is_live,
    notes,
    page,
    short_models,
    shortened,
    size,
    table,
)
from monitor.read import default_folder, survey
from optim.reader import Record

WATCH_SECONDS = "10"
NUMBER = r"-?\d*\.?\d+"
OPEN_SCREEN, HOME, CLEAR_LINE, CLEAR_BELOW, CLOSE_SCREEN = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
    "\x1b[?25h\x1b[?1049l",
)


def width() -> int | None:
    """Of the terminal; None where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def report(bases: Sequence[Path]) -> list[str]:
    """Lines of the table, live experiments first, and of the remarks below it."""
    found, queue = survey(bases)
    rows = sorted(found.values(), key=lambda row: not is_live(row))
    columns = width()
    lines = table(rows, columns)
    names = {
        row.name: shortened(short_models(row.name), columns // 3) if columns else row.name for row in rows
    }
    remarks = [
        f"{names[row.name]}: {note}" for row in rows for note in notes(row) + evaluation_notes(row)
    ] + ([queue.note] if queue.note else [])
    if columns:
        remarks = [
            part for remark in remarks for part in textwrap.wrap(remark, columns, subsequent_indent="  ")
        ]
    return lines + [""] * bool(remarks) + remarks


def watch(look: Callable[[], list[str]], seconds: float) -> None:
    """Redraw the report until Ctrl-C or SIGTERM raises KeyboardInterrupt; the last one stays on the
    terminal.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # a wrong folder ends it here; one that goes away later does not
    is_screen, lines = sys.stdout.isatty(), look()
    try:
        print(end=OPEN_SCREEN if is_screen else "")
        while True:
            draw([time.strftime("%H:%M:%S") + f"  every {seconds:g} s, Ctrl-C ends", *lines], is_screen)
            time.sleep(seconds)
            try:
                lines = look()
            except (UserError, OSError) as error:
                lines = str(error).splitlines()
    finally:
        if is_screen:
            print(CLOSE_SCREEN, *lines, sep="\n", flush=True)


def draw(lines: list[str], is_screen: bool) -> None:
    if is_screen:
        columns, height = shutil.get_terminal_size()
        if len(lines) > height - 1:
            lines = [*lines[: height - 2], f"and {len(lines) - height + 2} more lines"]
        print(
            HOME + "".join(line[:columns] + CLEAR_LINE + "\n" for line in lines) + CLEAR_BELOW,
            end="",
            flush=True,
        )
    else:
        print(*lines, "", sep="\n", flush=True)


def write_page(path: Path, bases: Sequence[Path]) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--html {path}: must be a file in a folder that is there")
    rows, queue = survey(bases)
    segments = {folder: Record(folder, []).segments for folder in rows}
    drawings = drawings_of(segments, {folder: row.best for folder, row in rows.items()})
    chapters = (
        Chapter(row, drawings[folder].curves, segments[folder], drawings[folder].samples)
        for folder, row in rows.items()
    )
    write_atomically(path, page(list(rows.values()), chapters, queue.note))
    print(
        f"wrote {path}: {len(rows)} experiment{'s' * (len(rows) != 1)}, {size(path.stat().st_size)}",
        flush=True,
    )


def interval(text: str) -> float:
    if not re.fullmatch(NUMBER, text) or not 0.5 <= float(text) <= 86400:
        raise argparse.ArgumentTypeError(f"must be 0.5 to 86400 seconds, not {text!r}")
    return float(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Raises UserError. A word after --watch that is no number is a folder."""
    parser = Arguments(prog="status.py", description="Show the state of all experiments.", allow_abbrev=False)
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="results, searched at any depth [$RESULTS_DIR, or where jobs write]",
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--watch",
        type=interval,
        nargs="?",
        metavar="SECONDS",
        help=f"redraw until Ctrl-C [off; {WATCH_SECONDS} s]",
    )
    ways.add_argument("--json", action="store_true", help="print a JSON list [off]")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="the cells of a sweep [off]")
    ways.add_argument("--html", type=Path, metavar="FILE", help="write a page with curves [off]")
    return parser.parsed(
        [
            f"--watch={WATCH_SECONDS}" if word == "--watch" and not re.fullmatch(NUMBER, after) else word
            for word, after in pairwise([*argv, ""])
        ]
    )


def of_sweep(args: argparse.Namespace) -> tuple[Callable[[], list[str]], Callable[[], Any]]:
    """What shows a sweep as text, and as JSON. Raises UserError."""
    from monitor import sweep

    if args.html:
        raise UserError("--html shows folders; pictures of a sweep: python -m report sweep FILE")
    if len(args.folders) > 1:
        raise UserError("--sweep takes one FOLDER, that of the results")
    results = args.folders[0] if args.folders else None
    return (
        lambda: sweep.report(args.sweep, results, width()),
        lambda: sweep.as_json(sweep.read_board(args.sweep, results)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> int:
        args = parse(sys.argv[1:] if argv is None else argv)
        bases = args.folders or [default_folder()]
        look, content = lambda: report(bases), lambda: [asdict(row) for row in survey(bases)[0].values()]
        if args.sweep:
            look, content = of_sweep(args)
        if args.watch:
            with suppress(KeyboardInterrupt):
                watch(look, args.watch)
        elif args.html:
            write_page(args.html, bases)
        elif args.json:
            print(json_text(content(), indent=2), flush=True)
        else:
            print(*look(), sep="\n", flush=True)
        return 0

    # names in any alphabet, on any terminal
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    return guarded("status.py", work)


if __name__ == "__main__":
    sys.exit(main())
