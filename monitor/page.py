"""How status.py shows experiments: words, a table of text, and one HTML page that needs no server and no network.

    python status.py --html page.html FOLDER
"""

from __future__ import annotations

import io
import math
import textwrap
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from drawing import load_matplotlib
from errors import UserError
from optim.reader import number

HEADERS = ("experiment", "state", "step", "%", "loss", "val ppl", "steps/h", "ETA", "seg", "ckpt age", "job", "queue", "disk")
LEFT = {"experiment", "state", "job", "queue"}  # columns of words; numbers stand on the right
UNREADABLE = "unreadable: "
NARROWEST_NAME = 12  # characters
POINTS = 2000  # at most so many of a curve are drawn
CROWDED = 60  # points from which they are no longer marked one by one
LOG_RANGE = 30.0  # largest over smallest gradient norm from which their axis is logarithmic
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"  # Okabe and Ito: for every kind of colour vision
PANELS = (("loss", "nats per token"), ("learning rate", "learning rate"), ("gradient norm", "norm before clipping"), ("throughput", "tokens/s"))

CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1240px; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .3rem; overflow-wrap: anywhere; }
h2 span { font-size: .9rem; font-weight: 400; margin-left: .6rem; }
p { margin: .3rem 0; } .note, .path { color: #555; font-size: .85rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; } th { color: #555; font-weight: 600; }
td.l, th.l { text-align: left; } td.name { white-space: normal; overflow-wrap: anywhere; min-width: 11rem; }
td.reason { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; } a { color: #005a8c; } svg { width: 100%; height: auto; }
.finished { color: #00694b; } .running { color: #005a8c; } .failed, .silent, .unreadable { color: #a33b00; font-weight: 600; }
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
    disk_bytes: int
    reason: str
    segment_reason: str
    problems: list[str]


@dataclass(frozen=True)
class Chapter:
    """What the page draws of one experiment: rows of metrics.jsonl and segments.jsonl."""

    progress: Progress
    metrics: list[dict[str, Any]]
    segments: list[dict[str, Any]]


def words(value: Any) -> str:
    """One line of text that does nothing to a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(value).split()))[:600]


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
    return "-" if value is None else f"{value:.1e}" if abs(value) >= 1e6 else f"{value:,.{digits if abs(value) < 1000 else 0}f}"


def cells(row: Progress) -> list[str]:
    """What the columns of HEADERS say."""
    state = f"{UNREADABLE}{row.problems[0].split(':')[0]}" if row.state == "unreadable" and row.problems else row.state
    step = "-" if row.step is None else f"{row.step}/{row.iterations or '?'}"
    return [row.name, state, step, "-" if row.percent is None else f"{row.percent}%", _rounded(row.loss, 3), _rounded(row.val_perplexity, 2),
            _rounded(row.steps_per_hour, 0 if (row.steps_per_hour or 0) >= 10 else 2), duration(row.eta_seconds), str(row.segments),
            duration(row.checkpoint_age_seconds), row.job_id or "-", row.queue or "-", size(row.disk_bytes)]


def table(rows: Sequence[Progress], columns: int | None) -> list[str]:
    """Lines of text, the names shortened in the middle where `columns` are too few for them; None shortens nothing."""
    grid = [list(HEADERS), *map(cells, rows)]
    widths = [max(len(cell) for cell in column if not cell.startswith(UNREADABLE)) for column in zip(*grid, strict=True)]
    longest = max((len(line[1]) for line in grid if line[1].startswith(UNREADABLE)), default=0)
    widths[1] = max(widths[1], longest - sum(widths[2:4]) - 4)
    if columns is not None:
        widths[0] = min(widths[0], max(NARROWEST_NAME, columns - sum(widths[1:]) - 2 * len(widths[1:])))
    for line in grid:
        line[0] = shortened(line[0], widths[0])
    return [_line(line, widths) for line in grid]


def _line(line: Sequence[str], widths: Sequence[int]) -> str:
    """The cell that says "unreadable" has the room of the two columns behind it as well: it would make the table too wide."""
    places = [cell.ljust(width) if name in LEFT else cell.rjust(width) for name, cell, width in zip(HEADERS, line, widths, strict=True)]
    if line[1].startswith(UNREADABLE):
        places[1:4] = [line[1].ljust(sum(widths[1:4]) + 4)]
    return "  ".join(places)


def shortened(name: str, width: int) -> str:
    """The two ends of a name that is too long; its end, which tells runs of one model apart, gets the larger half."""
    head = (width - 1) // 2
    return name if len(name) <= width else name[:head] + "…" + name[len(name) - (width - 1 - head):]


def notes(row: Progress) -> list[str]:
    """What the table has no room for: why a run ended, what it waits for, what cannot be read."""
    said = []
    if row.state in ("failed", "stopped"):
        other = f"; last segment: {row.segment_reason}" if row.segment_reason not in ("", row.reason) else ""
        said.append(f"{row.state}: {row.reason or 'no reason given'}{other}")
    if row.state == "silent":
        said.append(f"silent: says running, but changed nothing for {duration(row.updated_age_seconds)}, and its job is not known to run")
    if row.queue == "PENDING":
        said.append(f"job {row.job_id} waits ({row.queue_reason}), expected start {row.queue_start or 'unknown'}")
    return said + [f"unreadable: {problem}" for problem in row.problems]


# the page


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS of them: lowest and highest of equal stretches, so that no spike is lost."""
    if len(points) <= POINTS:
        return points
    stretch = math.ceil(2 * len(points) / POINTS)
    kept: list[tuple[float, float]] = []
    for first in range(0, len(points), stretch):
        part = points[first:first + stretch]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def curve(rows: Iterable[dict[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    """(step, value) in order of step; of a step that was trained again the newest row."""
    found = {}
    for row in rows:
        if row.get("kind") == kind:
            clock = row.get("time")
            step, value = number(row.get("step")), number(clock.get(key) if key not in row and isinstance(clock, dict) else row.get(key))
            if step is not None and value is not None:
                found[step] = value
    return thin(sorted(found.items()))


def figure(chapter: Chapter) -> str:
    """The curves of an experiment as inline SVG. Raises UserError where there is no matplotlib."""
    try:
        matplotlib = load_matplotlib()
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--html draws with matplotlib, which is not installed; pip install matplotlib") from None
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the fonts that matplotlib lacks
        drawing = Figure(figsize=(12, 6.6), layout="constrained")
        title = drawing.suptitle(textwrap.fill(chapter.progress.name.replace("/", "/ "), 130).replace("/ ", "/"), fontsize=11)
        title.set_parse_math(False)
        _draw(drawing.subplots(2, 2, sharex=True), chapter)
        drawing.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    return text[text.index("<svg"):]


def _draw(panels: Any, chapter: Chapter) -> None:
    rows = chapter.metrics
    lines = [
        [("train", "loss", BLUE, "-", "training"), ("eval", "val_loss", ORANGE, ".-", "validation"),
         ("final", "val_loss", "black", "D", "validation, whole split")],
        [("train", "lr", GREEN, "-", "learning rate")],
        [("train", "grad_norm", PINK, "-", "gradient norm")],
        [("train", "tokens_per_second", BLUE, "-", "throughput")]]
    starts = sorted({start for row in chapter.segments[1:] if (start := number(row.get("start_step"))) is not None})
    for axes, (title, unit), wanted in zip(panels.flat, PANELS, lines, strict=True):
        for kind, key, colour, mark, label in wanted:
            points = curve(rows, kind, key)
            if points:
                dots = mark if len(points) < CROWDED else "-"
                axes.plot(*zip(*points, strict=True), dots, color=colour, label=label, linewidth=1.2 if kind == "eval" else 0.9, markersize=5)
        if starts:
            axes.vlines(starts, 0, 1, transform=axes.get_xaxis_transform(), color=GREY, linewidth=0.8, linestyle="--", zorder=3, label="next segment")
        axes.set(title=title, ylabel=unit)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.has_data():
            axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    norms = [value for _, value in curve(rows, "train", "grad_norm")]
    if norms and 0 < min(norms) * LOG_RANGE < max(norms):
        panels[1, 0].set_yscale("log")
    panels[0, 1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panels[1, 1].yaxis.set_major_formatter("{x:,.0f}")
    panels[1, 1].set_ylim(bottom=0)
    for axes in panels[1]:
        axes.set_xlabel("optimiser step")


def _row(tag: str, texts: Iterable[str], left: Iterable[int], classes: dict[int, str] | None = None) -> str:
    marks = {**dict.fromkeys(left, "l"), **{place: f"l {name}" for place, name in (classes or {}).items()}}
    return "<tr>" + "".join(f'<{tag} class="{marks.get(place, "")}">{text}</{tag}>' for place, text in enumerate(texts)) + "</tr>\n"


def _overview(rows: Sequence[Progress]) -> str:
    left = [place for place, name in enumerate(HEADERS) if name in LEFT]
    body = ""
    for index, row in enumerate(rows):
        name, *rest = map(escape, cells(row))
        body += _row("td", [f'<a href="#e{index}">{name}</a>', *rest], left, {0: "name", 1: escape(row.state)})
    return f'<div class="wide"><table>\n{_row("th", HEADERS, left)}{body}</table></div>\n'


def _segments(chapter: Chapter) -> str:
    body = ""
    for index, row in enumerate(chapter.segments):
        start, end, took, began = (number(row.get(key)) for key in ("start_step", "end_step", "seconds", "started"))
        began_text = "-" if began is None or began < 0 else time.strftime("%Y-%m-%d %H:%M", time.localtime(min(began, 1e11)))
        span = ["-" if value is None else f"{value:.0f}" for value in (start, end, None if start is None or end is None else end - start)]
        texts = [words(row.get("segment", index)), words(row.get("job_id", "-")), words(row.get("restart", "-")), began_text, *span, duration(took),
                 "still running" if chapter.progress.state == "running" and row is chapter.segments[-1] else words(row.get("reason", "-"))]
        body += _row("td", map(escape, texts), (1, 3), {8: "reason"})
    head = _row("th", ("segment", "job", "restart", "started", "from step", "to step", "steps", "duration", "why it ended"), (1, 3, 8))
    return f'<div class="wide"><table>\n{head}{body}</table></div>\n' if body else '<p class="note">no segments.jsonl</p>\n'


def _chapter(index: int, chapter: Chapter) -> str:
    row = chapter.progress
    said = "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes(row))
    drawn = figure(chapter) if chapter.metrics else '<p class="note">no metrics.jsonl to draw</p>'
    return (f'<section id="e{index}">\n<h2>{escape(row.name)} <span class="{escape(row.state)}">{escape(row.state)}</span></h2>\n'
            f'<p class="path">{escape(row.folder)}</p>\n{said}{drawn}\n{_segments(chapter)}</section>\n')


def page(rows: Sequence[Progress], chapters: Iterable[Chapter], remark: str) -> str:
    """The whole page. No script runs in it and nothing is fetched: its policy forbids both."""
    made = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
            f'<meta name="viewport" content="width=device-width"><title>Experiments</title><style>{CSS}</style></head><body>\n'
            f'<h1>Experiments</h1>\n<p class="note">{len(rows)} experiment{"s" * (len(rows) != 1)}, as of {made}. {escape(remark)}</p>\n'
            + _overview(rows) + "".join(_chapter(index, chapter) for index, chapter in enumerate(chapters)) + "</body></html>\n")
