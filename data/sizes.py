"""How many bytes of text a token stands for, so that losses of different tokenizers can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.bins import TokenWindows
from data.tokenizer import sizes_of
from data.vocabulary import described
from errors import UserError

COUNTED = 1 << 22  # tokens whose bytes are looked up at once


def token_sizes(meta: Mapping[str, Any], vocab_size: int) -> NDArray[np.int64] | None:
    """Bytes (int64) of each token id, for the tokenizer that meta.json names; None where it names none, or
    one that is not available.

    The end of a document is no text: it has 0 bytes, though it is predicted and its loss counts.
    """
    try:
        sizes = sizes_of(described(meta))
    except (UserError, OSError):  # the rest of an evaluation needs no tokenizer
        return None
    if sizes is None:
        return None
    return np.array([*sizes, *[0] * (vocab_size - len(sizes))], dtype=np.int64)


def text_bytes(windows: TokenWindows, sizes: NDArray[np.int64], numbers: NDArray[np.int64]) -> int:
    """Bytes of the tokens that are predicted in the windows of these numbers."""
    length, total = windows.length, 0
    step = max(1, COUNTED // length)
    for first in range(0, numbers.size, step):
        starts = numbers[first : first + step] * length + 1
        total += int(sizes[windows.tokens[starts[:, None] + np.arange(length)]].sum())
    return total


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Of a mean loss in nats a token: exactly loss / ln 2 where each token is a byte, and
    infinite without text.
    """
    return loss * (n_tokens / n_bytes) / math.log(2) if n_bytes else math.inf
