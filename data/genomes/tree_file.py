"""Tree sequences as files with the same bytes whenever and wherever they are written.

tskit puts a random identifier into each file, and msprime the time, the machine and its Python into the
provenance. Here the provenance is one record that the caller gives, without a time, and the identifier
follows from the content.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from files import replace_atomically

if TYPE_CHECKING:
    import tskit

# the file format of tskit, kastore: a header, a descriptor for each array, then names and arrays
MAGIC = b"\x89KAS\r\n\x1a\n"
HEADER = struct.Struct("<8sHHIQ")  # magic, version (2), number of arrays, size of the file
HEADER_BYTES = DESCRIPTOR_BYTES = 64
DESCRIPTOR = struct.Struct("<B7xQQQQ")  # type, start and length of the name, start and length of the array
IDENTIFIER = b"uuid"


def identifier_at(content: bytes | bytearray) -> slice:
    """Where the content of a tree sequence's file holds its identifier."""
    arrays = HEADER.unpack_from(content)[3]
    for number in range(arrays):
        at = HEADER_BYTES + number * DESCRIPTOR_BYTES
        _, name, name_length, start, length = DESCRIPTOR.unpack_from(content, at)
        if content[name : name + name_length] == IDENTIFIER:
            return slice(start, start + length)
    raise ValueError("a tree sequence without an identifier")


def write_trees(path: Path, trees: tskit.TreeSequence, record: dict[str, Any]) -> None:
    """Write a file as a whole or not at all. record: becomes the only provenance."""
    tables = trees.dump_tables()
    tables.provenances.clear()
    tables.provenances.add_row(json.dumps(record), timestamp="")

    def write(temporary: Path) -> None:
        tables.dump(temporary)
        content = bytearray(temporary.read_bytes())
        place = identifier_at(content)
        content[place] = bytes(place.stop - place.start)
        digest = hashlib.sha256(content).digest()[:16]
        content[place] = str(UUID(bytes=digest)).encode()
        temporary.write_bytes(content)

    replace_atomically(path, write)


def is_whole(path: Path) -> bool:
    """Whether a file is of the size that it says it has."""
    with path.open("rb") as file:
        header = file.read(HEADER.size)
        size = path.stat().st_size
    if len(header) < HEADER.size:
        return False
    magic, *_, told = HEADER.unpack(header)
    return magic == MAGIC and told == size
