"""The last samples of a training (--sample_every) on the page: each prompt, and how the model went on.

markup = last_samples(rows)      # rows of metrics.jsonl; empty where there are none
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

KIND = "sample"  # of the rows, as optim/samples.py writes them, which needs torch
MOST = 4  # samples, of which a file of prompts may have many
LONGEST_PROMPT, LONGEST_TEXT = 40, 120  # characters, as in the log


def last_samples(rows: Iterable[dict[str, Any]]) -> str:
    """A table of the samples of the newest row that has any."""
    newest: dict[str, Any] = {}
    pairs: list[tuple[str, str]] = []
    for row in rows:
        if row.get("kind") == KIND and (found := [*_pairs(row)]):
            newest, pairs = row, found
    if not pairs:
        return ""
    left = len(pairs) - MOST
    more = f", {left} more in metrics.jsonl" if left > 0 else ""
    head = f"<tr><th>sample at step {escape(str(newest.get('step'))[:20])}{more}<th>goes on\n"
    body = "".join(
        f"<tr><td>{_shown(prompt, LONGEST_PROMPT)}<td>{_shown(text, LONGEST_TEXT)}\n"
        for prompt, text in pairs[:MOST]
    )
    return f'<table class="samples">\n{head}{body}</table>\n'


def _pairs(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Prompt and text of each sample; what is none is passed over, as files may hold anything."""
    samples = row.get("samples")
    for sample in samples if isinstance(samples, list) else ():
        if isinstance(sample, dict):
            prompt, text = sample.get("prompt"), sample.get("text")
            if isinstance(prompt, str) and isinstance(text, str):
                yield prompt, text


def _shown(text: str, longest: int) -> str:
    """On one line, in quotes, as in the log."""
    return escape(repr(text) if len(text) <= longest else f"{text[:longest]!r}…", quote=False)
