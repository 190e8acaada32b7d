"""What data.tokenize --format settles before it encodes: which files are read, the vocabulary, and what
meta.json says of the examples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.formats import CHAT
from data.corpus import records
from data.example_encode import STOPS, stop_token
from data.example_lines import READERS, TEMPLATE
from data.find import Bad, Found
from data.streams import printable
from data.tokenizer import KINDS, Tokenizer, named
from data.vocabulary import Vocabulary
from errors import UserError


def leave_texts_out(found: Found, inputs: list[Path]) -> None:
    """Take files of plain text, which hold no examples, out of what was found. Raises UserError for one that
    is named, and where nothing remains.
    """
    kept = []
    for shard in found.shards:
        if not shard.kind.startswith(".txt"):
            kept.append(shard)
        elif not shard.member and Path(shard.path) in inputs:
            raise UserError(f"--input {shard.name}: --format reads JSON lines or .parquet, and no plain text")
        else:
            found.passed.add(".txt files (examples are JSON lines)", shard.name)
    found.shards[:] = kept
    if not found.shards and not found.bad:
        names = ", ".join(printable(str(given)) for given in inputs)
        raise UserError("\n".join([*found.passed.lines(), f"--input {names}: no JSON lines of examples"]))


def known_by(tokenizer: str, found: Found, format: str | None) -> Vocabulary:
    """The vocabulary that --tokenizer names; where it is learned, that of the examples found. Raises
    UserError.
    """
    known = named(tokenizer)
    if format is None or known.characters or not KINDS[str(known.tokenizer)].is_learned:
        return known
    characters = set(STOPS[0])
    for shard in found.shards:
        for example in records(shard, READERS[format], Counter()):
            if not isinstance(example, Bad):
                characters.update(*example.texts)
    return replace(known, characters="".join(sorted(characters)))


def in_meta(format: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """What meta.json says of examples. Raises UserError where their answers cannot end."""
    found = {"format": format, "stop": stop_token(tokenizer)}
    if format == CHAT:
        found["template"] = TEMPLATE
    return found
