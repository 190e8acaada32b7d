"""Small raw corpora, whole and damaged, how to prepare them, and how to read their bins."""

import hashlib
import io
import json
import multiprocessing
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard

from data.bpe import END_OF_TEXT, gpt2
from data.tokenize import main
from tests.command_lines import code_of

BINS = ("train.bin", "val.bin")
DOCUMENTS = [
    "First.",
    "Hello world",
    "a literal <|endoftext|> in the text",
    "naïve ☃ 日本語 \U0001f600\n\ttabs",
    "",
    "x" * 5000,
    "last",
]


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


def words(folder, *inputs, **options):
    """Arguments of data.tokenize; True is a flag without a value."""
    flags = [
        part
        for name, value in {"workers": 1, **options}.items()
        for part in (
            [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
        )
    ]
    return ["--name", str(folder), "--input", *map(str, inputs), *flags]


def tokenize(words):
    """data.tokenize in this process; its workers are forks of it, which have loaded the engine already."""
    forks = SimpleNamespace(get_context=lambda method: multiprocessing.get_context("fork"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.tokenize.multiprocessing", forks)
        code = code_of(main, words)
    for worker in multiprocessing.active_children():  # it holds what its parent has locked
        worker.join()
    return code


def prepare(folder, *inputs, **options):
    return tokenize(words(folder, *inputs, **options))


def hashes(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in BINS}


def all_documents(folder):
    """Texts of both splits, sorted, for corpora whose order is not the point."""
    return sorted(decoded(folder / "train.bin") + decoded(folder / "val.bin"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def as_jsonl(folder):
    (folder / "a.jsonl").write_bytes(lines(DOCUMENTS))


def refusal(capfd, folder, *inputs, **options):
    """What a refused preparation says; asserts all that holds for each refusal."""
    code = prepare(folder, *inputs, **options)
    said = capfd.readouterr().err
    assert (code, [name for name in BINS if (folder / name).exists()], "Traceback" in said) == (
        2,
        [],
        False,
    ), said
    assert all(line.startswith("data.tokenize: error: ") and len(line) < 500 for line in said.splitlines()), (
        said[:2000]
    )
    return said


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_sources(data_dir, sizes, tokenizer=None):
    """Prepared datasets of bytes, drawn at random. sizes: name -> tokens for training; a tenth of them is
    for validation.
    """
    for seed, (name, size) in enumerate(sizes.items()):
        folder = data_dir / name
        folder.mkdir(parents=True)
        draw = np.random.default_rng(seed)
        for split, count in (("train", size), ("val", size // 10)):
            tokens = draw.integers(-3, 4, count).cumsum() % 256
            tokens.astype("<u2").tofile(folder / f"{split}.bin")
        if tokenizer:
            (folder / "meta.json").write_text(json.dumps({"tokenizer": tokenizer, "dtype": "uint16"}))


def write_documents(data_dir, counts, end_of_text=0, seed=0):
    """Prepared datasets of documents of drawn lengths, each followed by end_of_text, which meta.json names.
    counts: name -> documents for training; a tenth as many are for validation.
    """
    draw = np.random.default_rng(seed)
    for name, count in counts.items():
        folder = data_dir / name
        folder.mkdir(parents=True)
        for split, documents in (("train", count), ("val", -(-count // 10))):
            parts = []
            for length in np.maximum(draw.lognormal(3.3, 0.8, documents), 1).astype(int):
                parts += [draw.integers(-3, 4, length).cumsum() % 255 + 1, [end_of_text]]
            np.concatenate(parts).astype("<u2").tofile(folder / f"{split}.bin")
        (folder / "meta.json").write_text(json.dumps({"end_of_text": end_of_text}))
