"""A page of headings, paragraphs, lists, tables and pictures, as Markdown and as one HTML file that needs
nothing else.

    page = Page("Title", [Text("..."), Table(("a", "b"), [["1", "2"]]), Picture("fig2", png, "caption")])
    markdown(page), html(page)                          # pictures beside the Markdown: fig2.png
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from report.render import escape_markdown, table

CSS = """
:root{color-scheme:light dark;--text:#1b1b1b;--ground:#fff;--line:#bbb;--head:#f0f0f0}
@media (prefers-color-scheme:dark){:root{--text:#e6e6e6;--ground:#16181c;--line:#555;--head:#24272d}}
body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}
body{color:var(--text);background:var(--ground)}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:1em 0}
td,th{border:1px solid var(--line);padding:.25em .6em;text-align:left;vertical-align:top}
th{background:var(--head)}
figure{margin:1em 0}
img{max-width:100%;height:auto;background:#fff;padding:6px;border-radius:4px}
figcaption{font-size:90%}
td.confirmed{border-left:4px solid #009e73}
td.not-confirmed{border-left:4px solid #d55e00}
td.undecided{border-left:4px solid #999}
"""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `code`, **strong** and *emphasis* as in Markdown."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of plain texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """image: a PNG. text: what it shows."""

    name: str
    image: bytes
    text: str


Block = Heading | Text | Items | Table | Picture


@dataclass
class Page:
    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        self.blocks += blocks

    @property
    def pictures(self) -> list[Picture]:
        return [block for block in self.blocks if isinstance(block, Picture)]


def _marked(block: Block) -> list[str]:
    match block:
        case Heading():
            return ["#" * block.level + " " + escape_markdown(block.text)]
        case Text():
            return [block.text]
        case Items():
            return [f"- {escape_markdown(item)}" for item in block.items]
        case Table():
            return table(block.header, block.rows)
        case Picture():
            return [f"![{block.text}]({block.name}.png)"]


def markdown(page: Page) -> str:
    lines = [f"# {escape_markdown(page.title)}", ""]
    for block in page.blocks:
        lines += [*_marked(block), ""]
    return "\n".join(lines)


def _inline(text: str) -> str:
    """Escaped, with `code`, **strong** and *emphasis*."""
    escaped = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
    strong = re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", escaped)
    return re.sub(r"\*([^*]*)\*", r"<em>\1</em>", strong)


def _cell(tag: str, text: str) -> str:
    kind = text.replace(" ", "-") if text in ("confirmed", "not confirmed", "undecided") else ""
    mark = f' class="{kind}"' if kind else ""
    empty = "-" if tag == "td" else ""
    return f"<{tag}{mark}>{escape(text) or empty}</{tag}>"


def _tagged(block: Block) -> list[str]:
    match block:
        case Heading():
            return [f"<h{block.level}>{escape(block.text)}</h{block.level}>"]
        case Text():
            return [f"<p>{_inline(block.text)}</p>"]
        case Items():
            return ["<ul>", *(f"<li>{escape(item)}</li>" for item in block.items), "</ul>"]
        case Table():
            lines = ['<div class="wide"><table>']
            for tag, cells in [("th", block.header), *(("td", row) for row in block.rows)]:
                lines.append(f"<tr>{''.join(_cell(tag, cell) for cell in cells)}</tr>")
            return [*lines, "</table></div>"]
        case Picture():
            data = base64.b64encode(block.image).decode()
            image = f'<img alt="{escape(block.text)}" src="data:image/png;base64,{data}">'
            return [f"<figure>{image}<figcaption>{escape(block.text)}</figcaption></figure>"]


def html(page: Page) -> str:
    """No script, nothing fetched; readable on a light and on a dark ground."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    title = escape(page.title)
    lines = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{title}</title><style>{CSS}</style></head><body><h1>{title}</h1>",
    ]
    for block in page.blocks:
        lines += _tagged(block)
    return "\n".join([*lines, "</body></html>", ""])
