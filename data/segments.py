"""How the index of a set of examples is stored: a number (uint32) for each segment of each example.

A segment is a run of tokens that are all counted, or none: a prompt, an answer, the turns between two
answers. Its number holds its length, and in the two lowest bits whether it is counted and whether it is the
last of its example.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.bins import WIDE_TOKEN

LINE_FEED = 10

COUNTED, LAST, FLAG_BITS = 2, 1, 2
LONGEST = (1 << (32 - FLAG_BITS)) - 1  # tokens of a segment


def packed_segments(
    lengths: NDArray[np.int64], counted: NDArray[np.bool_], last: NDArray[np.bool_]
) -> NDArray[np.uint32]:
    """All (S,)."""
    return ((lengths << FLAG_BITS) | (counted * COUNTED) | (last * LAST)).astype(WIDE_TOKEN)


def lengths_in(segments: NDArray[Any]) -> NDArray[np.int64]:
    """Tokens of each segment (S,)."""
    return (segments >> FLAG_BITS).astype(np.int64)


def counted_in(segments: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each segment is counted (S,)."""
    return (segments & COUNTED) > 0


def ends_of_examples(segments: NDArray[Any]) -> NDArray[np.int64]:
    """For each example, the segment after its last."""
    return np.flatnonzero(segments & LAST) + 1
