"""Best-fit packing: documents side by side in rows of one length, so that each row begins with a document.

    packer = Packer(Arrivals(lengths), row=2049, buffer_size=1000)
    packed = packer.pack(16)        # pieces of the next 16 rows

Documents wait in a buffer, which is filled up before each placement. The longest that fits into what is left
of the row is placed; where none fits, the shortest is cropped to fill the row, and its rest is dropped. Among
equals the first that came is taken. All of it is a function of the documents' lengths and their order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.order import SampleOrder

REFILL = 128  # documents
# a document in the buffer is one number, its length above the number of its arrival: sorted by length, the
# first that came first
ARRIVAL_BITS = 36
ARRIVAL = (1 << ARRIVAL_BITS) - 1
LONGEST = (1 << (63 - ARRIVAL_BITS)) - 1  # longer ones are all alike
AHEAD = 8192  # documents whose lengths are looked up at once


@dataclass(frozen=True)
class Arrivals:
    """Documents in the order in which they come, epoch after epoch, numbered from 0.

    lengths: of each document (tokens, (N,) int64). order: permutation of each epoch; None: as they are
    numbered. group: documents that are read together; None: an epoch. A refill never spans groups.
    """

    lengths: NDArray[np.int64]
    order: SampleOrder | None = None
    group: int | None = None
    refill: int = REFILL

    def documents(self, arrivals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which documents come at these places (N,)."""
        if self.order is None:
            return arrivals % self.lengths.size
        return self.order.at(arrivals.astype(np.uint64))

    def end_of_refill(self, first: int) -> int:
        """The arrival after a refill that begins with this one."""
        epoch, document = divmod(first, self.lengths.size)
        group = self.group or self.lengths.size
        end_of_group = (document // group + 1) * group
        end = min(document + self.refill, end_of_group, self.lengths.size)
        return epoch * self.lengths.size + end


@dataclass(frozen=True)
class Packed:
    """Pieces of rows, one after the other. documents, kept, dropped: of each piece, its document and how many
    of its tokens are in the row and are lost, (P,) int64. ends: for each row, the piece after its last,
    (rows,) int64.
    """

    documents: NDArray[np.int64]
    kept: NDArray[np.int64]
    dropped: NDArray[np.int64]
    ends: NDArray[np.int64]


class Packer:
    """row: tokens of a row. buffer_size: documents that at least are waiting at each placement.

    arrived: how many documents have come; waiting: arrivals in the buffer. A packer that begins with both of
    another one goes on as that one would.
    """

    def __init__(
        self, arrivals: Arrivals, row: int, buffer_size: int, arrived: int = 0, waiting: Iterable[int] = ()
    ) -> None:
        self.arrivals, self.row, self.buffer_size, self.arrived = arrivals, row, buffer_size, arrived
        self.known, self.known_from = list[int](), arrived
        self.buffer = sorted(self._keys(np.array(list(waiting), dtype=np.int64)))

    @property
    def waiting(self) -> list[int]:
        """Arrivals in the buffer, the shortest document first."""
        return [key & ARRIVAL for key in self.buffer]

    def _keys(self, arrivals: NDArray[np.int64]) -> list[int]:
        lengths = self.arrivals.lengths[self.arrivals.documents(arrivals)]
        keys: list[int] = ((np.minimum(lengths, LONGEST) << ARRIVAL_BITS) | arrivals).tolist()
        return keys

    def _refill(self) -> None:
        while len(self.buffer) < self.buffer_size:
            end = self.arrivals.end_of_refill(self.arrived)
            if end > self.known_from + len(self.known):
                ahead = max(end, self.arrived + AHEAD)
                self.known = self._keys(np.arange(self.arrived, ahead, dtype=np.int64))
                self.known_from = self.arrived
            self.buffer += self.known[self.arrived - self.known_from : end - self.known_from]
            self.arrived = end
        self.buffer.sort()

    def pack(self, rows: int) -> Packed:
        """The next rows."""
        buffer, placed, kept, ends = self.buffer, list[int](), list[int](), list[int]()
        for _ in range(rows):
            space = self.row
            while space:
                if len(buffer) < self.buffer_size:
                    self._refill()
                place = bisect_left(buffer, (space + 1) << ARRIVAL_BITS)
                if place:  # something fits: of the longest, the first
                    longest = buffer[place - 1] >> ARRIVAL_BITS
                    place = bisect_left(buffer, longest << ARRIVAL_BITS)
                key = buffer.pop(place)
                length = min(key >> ARRIVAL_BITS, space)
                placed.append(key & ARRIVAL)
                kept.append(length)
                space -= length
            ends.append(len(kept))
        documents = self.arrivals.documents(np.array(placed, dtype=np.int64))
        lengths = np.array(kept, dtype=np.int64)
        dropped = self.arrivals.lengths[documents] - lengths
        return Packed(documents, lengths, dropped, np.array(ends, dtype=np.int64))
