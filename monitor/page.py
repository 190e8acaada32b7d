"""How status.py shows experiments: words, a table of text, and one HTML page that needs no server and no
network.

    python status.py --html page.html FOLDER
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from models.variants import ALIASES
from monitor.draw import STYLE, figure
from optim.evaluations import UNNAMED, Best, as_float

HEADERS = (
    "experiment",
    "state",
    "step",
    "%",
    "loss",
    "val ppl",
    "bpb",
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
LEFT_OUT = ("disk", "seg", "ckpt age", "loss", "steps/h", "%", "ETA", "val ppl", "bpb", "queue", "step")
ENOUGH_OF_A_NAME = 20  # characters, for which cells are left out
LONGEST_TITLE = 150  # characters of a figure's
LONGEST_EVALUATION = 16  # characters of an evaluation's name
# what an evaluation measures: its title and digits; what those of the user's own measure has its own name
MEASURED = {
    "val_loss": ("loss", 4),
    "val_pp": ("perplexity", 2),
    "val_bpb": ("bits per byte", 4),
    "val_acc": ("accuracy", 4),
    "val_margin": ("margin", 4),
    "val_policy_acc": ("chosen likelier", 4),
    "average_depth": ("average depth", 2),
    "n_tokens": ("tokens", 0),
    "n_pairs": ("pairs", 0),
}
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
.all :is(th, td):is(:nth-child(1), :nth-child(2), :nth-last-child(3), :nth-last-child(2)), .jobs :is(th, \
td):is(:nth-child(2), :nth-child(4), :nth-child(9)), .measured :is(th, td):first-child, .samples :is(th, td) {
  text-align: left; }
.samples td { white-space: pre-wrap; overflow-wrap: anywhere; font-family: monospace; vertical-align: top; }
.samples td:first-child { min-width: 12rem; }
.all td:first-child, .jobs td:nth-child(9) { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
b { font-weight: inherit; } a { color: #005a8c; }
.finished { color: #00694b; } .running { color: #005a8c; } .failed, .silent, .unreadable { color: #a33b00; \
font-weight: 600; }
"""


@dataclass(frozen=True)
class Newest:
    """The last row of an evaluation: its numbers by their names. is_final: of the end, on the whole split."""

    step: int | None
    is_final: bool
    values: dict[str, float]


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
    val_bpb: float | None = None
    evaluation: str | None = None  # the name of that of val_perplexity and val_bpb, empty where it has none
    evaluations: dict[str, Newest] = field(default_factory=dict)
    best: Best | None = None
    mixture: dict[str, float] = field(default_factory=dict)  # shares of the sources, by name


@dataclass(frozen=True)
class Chapter:
    """What the page shows of one experiment: the drawing of its curves, empty where it has none, rows of
    segments.jsonl, and the table of its last samples, where it has any.
    """

    progress: Progress
    drawing: str
    segments: list[dict[str, Any]]
    samples: str = ""


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


def _number(key: str, value: float | None) -> str:
    if value is None or key in MEASURED:
        return _rounded(value, MEASURED[key][1] if key in MEASURED else 0)
    return f"{value:.6g}"


def _step(newest: Newest) -> str:
    return "?" if newest.step is None else f"{newest.step:,}{' (final)' * newest.is_final}"


def _of_evaluation(row: Progress, text: str) -> str:
    """A number of an evaluation, after its name where it has one."""
    return f"{shortened(row.evaluation, LONGEST_EVALUATION)} {text}" if row.evaluation else text


def columns_of(rows: Iterable[Progress]) -> list[int]:
    """Places in HEADERS of what is shown: bits per byte only where an experiment has them."""
    has_bits = any(row.val_bpb is not None for row in rows)
    return [place for place, name in enumerate(HEADERS) if has_bits or name != "bpb"]


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
        _of_evaluation(row, _rounded(row.val_perplexity, 2)),
        _rounded(row.val_bpb, 3),
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
    shown = columns_of(rows)
    widths = _widths(grid, shown)
    if columns is not None:
        for name in LEFT_OUT:
            if _whole(widths) - widths[0] + min(widths[0], ENOUGH_OF_A_NAME) <= columns:
                break
            shown = [place for place in shown if HEADERS[place] != name]
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
    if row.state in ("failed", "refused", "stopped"):
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


def evaluation_notes(row: Progress) -> list[str]:
    """A line on the last values of all evaluations, where the table has not the room to say them, or to say
    what was measured.
    """
    if not row.evaluations or (row.evaluation is not None and len(row.evaluations) == 1):
        return []
    told: dict[str, list[str]] = {}
    for name, newest in row.evaluations.items():
        values = newest.values
        shown = {"val_loss": values["val_loss"]} if "val_pp" in values else values
        numbers = " ".join(f"{MEASURED.get(key, (key,))[0]} {_number(key, shown[key])}" for key in shown)
        told.setdefault(_step(newest), []).append(f"{name or UNNAMED} {numbers}")
    parts = [f"evaluations at step {step}: {', '.join(texts)}" for step, texts in told.items()]
    return [words("; ".join([*parts, *([f"best.pt: {row.best}"] if row.best else [])]))]


# the page


def _row(tag: str, texts: Iterable[str]) -> str:
    """Without the end tags that HTML does not ask for: of many experiments they would be a tenth of the
    page.
    """
    return "<tr>" + "".join(f"<{tag}>{text}" for text in texts) + "\n"


def _overview(rows: Sequence[Progress]) -> str:
    body, shown = "", columns_of(rows)
    for index, row in enumerate(rows):
        texts = [*map(escape, cells(row))]
        name, state, *rest = (texts[place] for place in shown)
        body += _row(
            "td",
            [
                f'<a href="#e{index}">{short_models(name)}</a>',
                f'<b class="{escape(row.state)}">{state}</b>',
                *rest,
            ],
        )
    head = _row("th", (HEADERS[place] for place in shown))
    return f'<table class="all">\n{head}{body}</table>\n'


def _measured(row: Progress) -> str:
    """The last values of each evaluation, and what else the figure does not say of them; empty where the
    overview says all.
    """
    text = ""
    if row.mixture:
        shares = ", ".join(f"{words(name)} {100 * share:.4g}%" for name, share in row.mixture.items())
        text += f'<p class="note">mixture: {escape(shares)}</p>\n'
    if row.best:
        text += f'<p class="note">best.pt: {escape(words(row.best))}</p>\n'
    if not evaluation_notes(row) and not row.evaluation and row.val_bpb is None:
        return text
    keys = [*dict.fromkeys(key for newest in row.evaluations.values() for key in newest.values)]
    keys.sort(key=lambda key: [*MEASURED, key].index(key))
    body = ""
    for name, newest in row.evaluations.items():
        values = [_number(key, newest.values.get(key)) for key in keys]
        body += _row("td", map(escape, (name or UNNAMED, _step(newest), *values)))
    titles = [MEASURED.get(key, (key,))[0] for key in keys]
    head = _row("th", map(escape, ("evaluation", "step", *titles)))
    return f'{text}<table class="measured">\n{head}{body}</table>\n'


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
        f' class="path">{escape(row.folder)}</p>\n{remarks}{drawn}\n'
        f"{_measured(row)}{chapter.samples}{_segments(chapter)}</section>\n"
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
