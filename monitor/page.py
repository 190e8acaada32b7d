"""How status.py shows experiments: words, a table of text, and one HTML page that needs no server and no
network.

    python status.py --html page.html FOLDER
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from models.variants import ALIASES
from monitor.draw import STYLE, figure
from optim.reader import as_float

HEADERS = (
    "experiment",
    "state",
    "step",
    "%",
    "loss",
    "val ppl",
    "steps/h",
    "ETA",
    "seg",
    "ckpt age",
    "job",
    "queue",
    "disk",
)
LEFT = {"experiment", "state", "job", "queue"}  # columns of words; numbers stand on the right
UNREADABLE = "unreadable: "
GAP = "  "
# in this order, where there is no room
LEFT_OUT = ("disk", "seg", "ckpt age", "loss", "steps/h", "%", "ETA", "val ppl", "queue", "step")
ENOUGH_OF_A_NAME = 20  # characters, for which cells are left out
LONGEST_TITLE = 150  # characters of a figure's
NARROWEST_NAME = 8  # where all that may be left out is
SHORT = {name: short for short, name in ALIASES.items()}

CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1240px; margin: \
1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .3rem; overflow-wrap: \
anywhere; }
h2 span { font-size: .9rem; font-weight: 400; margin-left: .6rem; }
p { margin: .3rem 0; } .note, .path { color: #555; font-size: .85rem; overflow-wrap: anywhere; }
table { display: block; overflow-x: auto; margin: 1rem 0; border-collapse: collapse; font-size: .85rem; \
font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; } th \
{ color: #555; font-weight: 600; }
.all :is(th, td):is(:nth-child(1), :nth-child(2), :nth-child(11), :nth-child(12)), .jobs :is(th, \
td):is(:nth-child(2), :nth-child(4), :nth-child(9)) {
  text-align: left; }
.all td:first-child, .jobs td:nth-child(9) { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
b { font-weight: inherit; } a { color: #005a8c; }
.finished { color: #00694b; } .running { color: #005a8c; } .failed, .silent, .unreadable { color: #a33b00; \
font-weight: 600; }
"""


@dataclass(frozen=True)
class Progress:
    """One experiment; None is what is not known."""

    name: str
    folder: str
    state: str
    step: int | None
    iterations: int | None
    percent: int | None
    loss: float | None
    val_perplexity: float | None
    steps_per_hour: float | None
    eta_seconds: float | None
    segments: int
    checkpoint_age_seconds: float | None
    updated_age_seconds: float | None
    job_id: str | None
    queue: str | None
    queue_reason: str | None
    queue_start: str | None
    waiting: list[str]  # what its jobs wait for
    disk_bytes: int
    reason: str
    segment_reason: str
    # why no job works on it or waits for it, empty where that was not said; None where one does, or it is not
    # known
    chain_end: str | None
    problems: list[str]
    yardstick: str | None = None  # how it compares with another training of the same model at this step


@dataclass(frozen=True)
class Chapter:
    """What the page shows of one experiment: the drawing of its curves, empty where it has none, and rows
    of segments.jsonl.
    """

    progress: Progress
    drawing: str
    segments: list[dict[str, Any]]


def words(value: Any) -> str:
    """One line of text that does nothing to a terminal."""
    text = " ".join(str(value).split())[:600]
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def duration(seconds: float | None) -> str:
    """2d 03h, 5h 12m, 12m or 40s."""
    if seconds is None:
        return "-"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}h {minutes % 60:02d}m" if hours else f"{minutes}m" if minutes else f"{int(seconds)}s"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _rounded(value: float | None, digits: int) -> str:
    return (
        "-"
        if value is None
        else f"{value:.1e}"
        if abs(value) >= 1e6
        else f"{value:,.{digits if abs(value) < 1000 else 0}f}"
    )


def cells(row: Progress) -> list[str]:
    """What the columns of HEADERS say."""
    state = (
        f"{UNREADABLE}{row.problems[0].split(':')[0]}"
        if row.state == "unreadable" and row.problems
        else row.state
    )
    step = "-" if row.step is None else f"{row.step}/{row.iterations or '?'}"
    return [
        row.name,
        state,
        step,
        "-" if row.percent is None else f"{row.percent}%",
        _rounded(row.loss, 3),
        _rounded(row.val_perplexity, 2),
        _rounded(row.steps_per_hour, 0 if (row.steps_per_hour or 0) >= 10 else 2),
        duration(row.eta_seconds),
        str(row.segments),
        duration(row.checkpoint_age_seconds),
        row.job_id or "-",
        row.queue or "-",
        size(row.disk_bytes),
    ]


def is_live(row: Progress) -> bool:
    """Whether something works on it, or a job of it is in the queue."""
    return row.state == "running" or row.queue not in (None, "?", "no job")


def table(rows: Sequence[Progress], columns: int | None) -> list[str]:
    """Lines of text for so many columns: short names of models, and where that is not enough fewer cells,
    then names without their middle.

    None leaves nothing out and shortens nothing.
    """
    grid = [list(HEADERS), *map(cells, rows)]
    if columns is not None:
        for line in grid[1:]:
            line[0] = short_models(line[0])
    shown = list(range(len(HEADERS)))
    widths = _widths(grid, shown)
    if columns is not None:
        for name in LEFT_OUT:
            if _whole(widths) - widths[0] + min(widths[0], ENOUGH_OF_A_NAME) <= columns:
                break
            shown.remove(HEADERS.index(name))
            widths = _widths(grid, shown)
        widths[0] = min(widths[0], max(NARROWEST_NAME, columns - _whole(widths) + widths[0]))
    for line in grid:
        line[0] = shortened(line[0], widths[0])
    return [_line(line, shown, widths) for line in grid]


def _widths(grid: Sequence[Sequence[str]], shown: Sequence[int]) -> list[int]:
    """Of the columns that are shown. A cell that says "unreadable" has the room of step and percent as
    well: it would make the table too wide.
    """
    widths = [
        max(len(line[place]) for line in grid if not line[place].startswith(UNREADABLE)) for place in shown
    ]
    longest = max((len(line[1]) for line in grid if line[1].startswith(UNREADABLE)), default=0)
    room = widths[2 : _end_of_state(shown)]
    widths[1] = max(widths[1], longest - sum(room) - len(GAP) * len(room))
    return widths


def _end_of_state(shown: Sequence[int]) -> int:
    """How many of the columns that are shown come before those that a cell that says "unreadable" leaves
    alone.
    """
    return sum(HEADERS[place] in ("experiment", "state", "step", "%") for place in shown)


def _whole(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _line(line: Sequence[str], shown: Sequence[int], widths: Sequence[int]) -> str:
    places = [
        line[place].ljust(width) if HEADERS[place] in LEFT else line[place].rjust(width)
        for place, width in zip(shown, widths, strict=True)
    ]
    if line[1].startswith(UNREADABLE):
        end = _end_of_state(shown)
        places[1:end] = [line[1].ljust(_whole(widths[1:end]))]
    return GAP.join(places)


def short_models(name: str) -> str:
    """A name with the short ones of the models that are parts of it."""
    return "/".join(SHORT.get(part, part) for part in name.split("/"))


def shortened(name: str, width: int) -> str:
    """The two ends of a name that is too long; its end, which distinguishes runs of one model, gets the
    larger half.
    """
    head = (width - 1) // 2
    return name if len(name) <= width else name[:head] + "…" + name[len(name) - (width - 1 - head) :]


def notes(row: Progress) -> list[str]:
    """What the table has no room for: why a run ended, what it waits for, what cannot be read."""
    chain = (
        ""
        if row.chain_end is None
        else "; the chain is dead" + (f": {row.chain_end}" if row.chain_end not in ("", row.reason) else "")
    )
    lines = []
    if row.state in ("failed", "stopped"):
        other = f"; last segment: {row.segment_reason}" if row.segment_reason not in ("", row.reason) else ""
        lines.append(f"{row.state}: {row.reason or 'no reason given'}{other}{chain}")
    elif row.state == "silent":
        lines.append(
            f"silent: says running, but changed nothing for {duration(row.updated_age_seconds)}, and its job"
            f" is not known to run{chain}"
        )
    elif chain:
        lines.append(f"{row.state}{chain}")
    lines += [row.yardstick] if row.yardstick else []
    return lines + row.waiting + [f"unreadable: {problem}" for problem in row.problems]


# the page


def _row(tag: str, texts: Iterable[str]) -> str:
    """Without the end tags that HTML does not ask for: of many experiments they would be a tenth of the
    page.
    """
    return "<tr>" + "".join(f"<{tag}>{text}" for text in texts) + "\n"


def _overview(rows: Sequence[Progress]) -> str:
    body = ""
    for index, row in enumerate(rows):
        name, state, *rest = map(escape, cells(row))
        body += _row(
            "td",
            [
                f'<a href="#e{index}">{short_models(name)}</a>',
                f'<b class="{escape(row.state)}">{state}</b>',
                *rest,
            ],
        )
    return f'<table class="all">\n{_row("th", HEADERS)}{body}</table>\n'


def _segments(chapter: Chapter) -> str:
    body = ""
    for index, row in enumerate(chapter.segments):
        start, end, took, began = (
            as_float(row.get(key)) for key in ("start_step", "end_step", "seconds", "started")
        )
        began_text = (
            "-"
            if began is None or began < 0
            else time.strftime("%Y-%m-%d %H:%M", time.localtime(min(began, 1e11)))
        )
        span = [
            "-" if value is None else f"{value:.0f}"
            for value in (start, end, None if start is None or end is None else end - start)
        ]
        texts = [
            words(row.get("segment", index)),
            words(row.get("job_id", "-")),
            words(row.get("restart", "-")),
            began_text,
            *span,
            duration(took),
            (
                "still running"
                if chapter.progress.state == "running" and row is chapter.segments[-1]
                else words(row.get("reason", "-"))
            ),
        ]
        body += _row("td", map(escape, texts))
    head = _row(
        "th",
        ("segment", "job", "restart", "started", "from step", "to step", "steps", "duration", "why it ended"),
    )
    return (
        f'<table class="jobs">\n{head}{body}</table>\n' if body else '<p class="note">no segments.jsonl</p>\n'
    )


def _chapter(index: int, chapter: Chapter, has_frame: bool) -> str:
    row = chapter.progress
    name = short_models(row.name)
    remarks = "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes(row))
    drawn = (
        figure(shortened(name, LONGEST_TITLE), chapter.drawing, has_frame)
        if chapter.drawing
        else '<p class="note">no metrics.jsonl to draw</p>'
    )
    return (
        f'<section id="e{index}">\n<h2>{escape(name)} <span'
        f' class="{escape(row.state)}">{escape(row.state)}</span></h2>\n<p'
        f' class="path">{escape(row.folder)}</p>\n{remarks}{drawn}\n{_segments(chapter)}</section>\n'
    )


def _chapters(chapters: Iterable[Chapter]) -> Iterator[str]:
    """Of each experiment one; the first figure has what all of them share."""
    has_frame = False
    for index, chapter in enumerate(chapters):
        yield _chapter(index, chapter, not has_frame)
        has_frame = has_frame or chapter.drawing != ""


def page(rows: Sequence[Progress], chapters: Iterable[Chapter], remark: str) -> str:
    """The whole page. No script runs in it and nothing is fetched: its policy forbids both."""
    made = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    count = f"{len(rows)} experiment{'s' * (len(rows) != 1)}"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width"><title>Experiments</title>'
        f"<style>{CSS}{STYLE}</style></head><body>",
        "<h1>Experiments</h1>",
        f'<p class="note">{count}, as of {made}. {escape(remark)}</p>',
    ]
    return "\n".join(lines) + "\n" + _overview(rows) + "".join(_chapters(chapters)) + "</body></html>\n"
