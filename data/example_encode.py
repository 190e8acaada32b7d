"""Examples as tokens, in a worker process of data.tokenize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.bins import dtype_for
from data.encode import with_ends
from data.example_lines import Example
from data.find import Bad
from data.segments import LONGEST, packed_segments
from data.tokenizer import Encoder, Tokenizer
from data.vocabulary import Vocabulary
from errors import UserError

STOPS = ("\0", "\n")  # of tokenizers without an end-of-text token, where one token is exactly that


def stop_token(tokenizer: Tokenizer) -> int:
    """The token that ends an answer: that of the end of a text, else the one of a byte that no text has, or
    of the line feed. Raises UserError where there is none.
    """
    if tokenizer.known.end_of_text is not None:
        return tokenizer.known.end_of_text
    for text in STOPS:
        try:
            tokens = tokenizer.encode(text)
        except UserError:  # characters that the tokenizer lacks
            continue
        if len(tokens) == 1 and tokenizer.bytes_of(tokens[0]) == text.encode():
            return tokens[0]
    raise UserError(
        f"the tokenizer {tokenizer.known.tokenizer!r} has no token with which an answer could end:"
        " neither an end-of-text token (eos_token of a tokenizer_config.json beside it), nor one of byte 0 or"
        " of a line feed"
    )


class ExampleEncoder:
    """The examples of one group of shards, batch by batch.

    sizes: bytes that each token stands for; None: those of the text.
    """

    def __init__(self, tokenizer: Tokenizer, group: int, sizes: NDArray[np.int64] | None) -> None:
        self.known: Vocabulary = tokenizer.known
        self.encoder: Encoder = tokenizer.encoder(group)
        self.dtype, self.stop, self.sizes = dtype_for(tokenizer.size), stop_token(tokenizer), sizes

    def encode(
        self, examples: Sequence[Example], name: str, bad: list[Bad]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Content of the files of the group by their endings, and counts of it. Adds examples that cannot be
        used to `bad`. Raises UserError.
        """
        texts = [text for example in examples for text in example.texts]
        counted = np.array([is_counted for example in examples for is_counted in example.counted], dtype=bool)
        owners = np.repeat(np.arange(len(examples)), [len(example.texts) for example in examples])
        tokens, lengths = self.encoder.encode(texts, name)
        kept = 0 if self.sizes is None else int(self.sizes[tokens].sum())
        tokens, lengths = self._ended(tokens, lengths, counted)
        wrong = self._wrong(tokens, lengths, counted, owners)
        if wrong:
            bad += [Bad(examples[number].place, reason) for number, reason in sorted(wrong.items())]
            return self.encode([e for number, e in enumerate(examples) if number not in wrong], name, bad)
        last = np.diff(owners, append=len(examples)) > 0
        size = sum(len(text.encode()) for text in texts)
        content = {
            "bin": tokens.astype(self.dtype, copy=False).data,
            "len": packed_segments(lengths, counted, last).data,
            "jsonl": b"".join(example.kept for example in examples),
        }
        counts = {
            "documents": len(examples),
            "tokens": tokens.size,
            "bytes": size,
            "kept_bytes": size if self.sizes is None else kept,
            "segments": lengths.size,
            "kept_lines": len(content["jsonl"]),
        }
        return content, counts

    def _ended(
        self, tokens: NDArray[Any], lengths: NDArray[np.int64], counted: NDArray[np.bool_]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Tokens and lengths of segments, of which those that are counted, and no others, end with `stop`."""
        if self.known.end_of_text is None:
            tokens, lengths = with_ends(tokens, lengths, self.stop, self.dtype)
        stays = np.ones(tokens.size, dtype=bool)
        stays[(np.cumsum(lengths) - 1)[~counted]] = False
        return tokens[stays], lengths - ~counted

    def _wrong(
        self,
        tokens: NDArray[Any],
        lengths: NDArray[np.int64],
        counted: NDArray[np.bool_],
        owners: NDArray[np.int64],
    ) -> dict[int, str]:
        """Number of each example that cannot be used, and why."""
        ends = np.cumsum(lengths)
        stops = np.flatnonzero(tokens == self.stop)
        segments = np.searchsorted(ends, stops, side="right")
        inside = counted[segments] & (stops != ends[segments] - 1)
        wrong = dict.fromkeys(
            owners[segments[inside]].tolist(), f"an answer holds token {self.stop}, with which answers end"
        )
        wrong |= dict.fromkeys(
            owners[lengths <= counted].tolist(), "the tokenizer has no token for a text of it"
        )
        return wrong | dict.fromkeys(owners[lengths > LONGEST].tolist(), "too long")


def readable(read: Callable[[dict[str, Any], str], Example | Bad], known: Vocabulary) -> Any:
    """`read`, which finds an example bad where the characters of a vocabulary, if it is of characters, lack
    one of its texts'.
    """
    if known.characters is None:
        return read
    there = set(known.characters)

    def checked(value: dict[str, Any], place: str) -> Example | Bad:
        found = read(value, place)
        strange = set() if isinstance(found, Bad) else set("".join(found.texts)) - there
        return Bad(place, f"the tokenizer has no {min(strange)!r}") if strange else found

    return checked
