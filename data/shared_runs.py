"""Windows of validation tokens that occur verbatim in the training tokens: found by rolling hashes, and
compared token by token before they count.

The training split is read once, in slices: memory grows with the validation split alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from config.tokenizers import BYTES, CHARACTERS
from data.bins import Tokens
from data.order import splitmix64
from errors import UserError

LENGTH = 50  # tokens of word pieces
PIECE = 4  # bytes that such a token stands for, about
# beyond it, two windows of two tokens in turn could have one hash whatever its base
LONGEST = 512
SLICE = 1 << 16  # windows that are hashed at a time: their arrays stay in a core's cache
COMPARED = 1 << 22  # tokens that are compared at a time
BASES = 8  # that are tried, each of which fails once in millions of datasets
Places = NDArray[np.int64]


def default_length(tokenizer: str | None) -> int:
    """Tokens of a window, of a tokenizer as meta.json names it."""
    return LENGTH * PIECE if tokenizer in (BYTES, CHARACTERS) else LENGTH


class Hasher:
    """Polynomial hashes of windows, modulo 2^64: sum of token j times base^j.

    The lowest bits say little; the highest ones choose a place in a table.
    """

    def __init__(self, length: int, seed: int) -> None:
        base = splitmix64(seed) | 1
        inverse = pow(base, -1, 1 << 64)
        self.length = length
        self.powers = _powers(base, SLICE + length - 1)
        self.inverses = _powers(inverse, SLICE)

    def hashes(self, tokens: Tokens) -> NDArray[np.uint64]:
        """Of each window of at most SLICE + length - 1 tokens; none where they are too few."""
        count = tokens.size - self.length + 1
        if count < 1:
            return np.empty(0, dtype=np.uint64)
        sums = np.zeros(tokens.size + 1, dtype=np.uint64)
        np.cumsum(tokens.astype(np.uint64) * self.powers[: tokens.size], out=sums[1:])
        return (sums[self.length :] - sums[:count]) * self.inverses[:count]

    def slices(self, tokens: Tokens) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """The first place of each slice of a split, and the hashes of the windows that begin in it."""
        for first in range(0, tokens.size - self.length + 1, SLICE):
            yield first, self.hashes(tokens[first : first + SLICE + self.length - 1])


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """1, base, base^2, ... modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def are_equal(first: Tokens, at: Places, second: Tokens, other: Places, length: int) -> NDArray[np.bool_]:
    """Whether the windows of two splits at these places are the same, token by token."""
    result = np.empty(at.size, dtype=bool)
    offsets, count = np.arange(length), max(1, COMPARED // length)
    for begin in range(0, at.size, count):
        part = slice(begin, begin + count)
        same = first[at[part, None] + offsets] == second[other[part, None] + offsets]
        result[part] = same.all(1)
    return result


class Index:
    """The distinct windows of a validation split, and which of them have been found.

    starts: where windows begin. Raises ValueError where two different ones have one hash.
    """

    def __init__(self, tokens: Tokens, starts: Places, hasher: Hasher) -> None:
        self.tokens, self.length = tokens, hasher.length
        every = [hashes for _, hashes in hasher.slices(tokens)]
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *every])[starts]
        self.keys, first, self.key_of = np.unique(hashes, return_index=True, return_inverse=True)
        self.place = starts[first]  # of one window with each hash
        if not are_equal(tokens, starts, tokens, self.place[self.key_of], self.length).all():
            raise ValueError("two windows have one hash")
        self.found = np.zeros(self.keys.size, dtype=bool)
        bits = min(max(int(self.keys.size).bit_length() + 4, 16), 28)
        self.shift = np.uint64(64 - bits)
        self.is_there = np.zeros(1 << bits, dtype=bool)  # whether any key begins with these bits
        self.is_there[self.keys >> self.shift] = True

    def find(self, train: Tokens, first: int, hashes: NDArray[np.uint64]) -> None:
        """Note which of the windows that begin at `first` and after it in the training split are here."""
        begins = np.flatnonzero(self.is_there[hashes >> self.shift])
        keys = np.searchsorted(self.keys, hashes[begins])
        keys[keys == self.keys.size] = 0
        is_new = (self.keys[keys] == hashes[begins]) & ~self.found[keys]
        begins, keys = begins[is_new], keys[is_new]
        same = are_equal(train, begins + first, self.tokens, self.place[keys], self.length)
        self.found[keys[same]] = True


def windows_of(tokens: Tokens, ends: Places | None, length: int) -> Places:
    """Where windows begin that lie within a document. ends: the places of the tokens that end documents;
    None: nothing says where one ends.
    """
    starts = np.arange(max(0, tokens.size - length + 1))
    if ends is None:
        return starts
    before = np.searchsorted(ends, starts)  # ends that come before each window
    return starts[before == np.searchsorted(ends, starts + length)]


def shared_windows(train: Tokens, val: Tokens, starts: Places, length: int) -> NDArray[np.bool_]:
    """Whether each window of the validation split, by where it begins, is in the training split."""
    if not starts.size:
        return np.zeros(0, dtype=bool)
    for seed in range(BASES):
        hasher = Hasher(length, seed)
        try:
            index = Index(val, starts, hasher)
        except ValueError:
            continue
        for first, hashes in hasher.slices(train):
            index.find(train, first, hashes)
        return index.found[index.key_of]
    raise UserError(f"no hash of {BASES} tells the windows of {length} tokens apart; give another --length")
