"""Small raw corpora, whole and damaged, and how to read the bins that are made of them."""

import io
import json
import tarfile

import numpy as np
import zstandard

from data.bpe import END_OF_TEXT, gpt2


def lines(texts, key="text"):
    """JSON lines; lone surrogates are escaped."""
    return b"".join(json.dumps({key: text}).encode() + b"\n" for text in texts)


def compress(content):
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(content)


def entry(name, size=0, **attributes):
    member = tarfile.TarInfo(name)
    member.size = size
    for key, value in attributes.items():
        setattr(member, key, value)
    return member


def write_tar(path, members):
    """A tar of (name or TarInfo, content) pairs."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = entry(name) if isinstance(name, str) else name
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def edit_members(archive, edit):
    """Rewrite an archive with the bytes of each member changed."""
    with tarfile.open(archive) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    return write_tar(archive, [(name, edit(content)) for name, content in members])


def offsets(archive):
    """Where the headers and the contents of the members begin."""
    with tarfile.open(archive) as tar:
        return [(member.offset, member.offset_data) for member in tar]


def overwrite(path, place, content):
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)
    return path


def split_documents(tokens):
    """Tokens of a bin as lists, one a document; the end-of-text tokens are taken off."""
    ends = np.flatnonzero(tokens == END_OF_TEXT)
    return [part[:-1].tolist() for part in np.split(tokens, ends + 1)[:-1]]


def decoded(path):
    """Texts of the documents of a bin."""
    encoding = gpt2()
    return [encoding.decode(part) for part in split_documents(np.fromfile(path, dtype="<u2"))]
