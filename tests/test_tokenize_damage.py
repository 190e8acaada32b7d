"""Damaged and adversarial raw files: the tokens of tiktoken, or a clear error that names the place."""

import gzip
import json
import os
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.bpe import gpt2
from data.encode import Checked, Gigatoken, Tiktoken
from data.split import is_validation
from errors import UserError
from tests.corpora import (
    BINS,
    DOCUMENTS,
    all_documents,
    compress,
    edit_members,
    entry,
    lines,
    offsets,
    overwrite,
    prepare,
    refusal,
    split_documents,
    write_tar,
)

pytestmark = pytest.mark.slow  # each starts worker processes


# adversarial documents


LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABETS = [
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f3fd\u2764\ufe0f\U0001f1e9\U0001f1ea",
    "\0",
    "\ud800\udbff\udc00\udfff\ud83d\ude00",
    "שלום עולם مرحبا بالعالم\u200f\u202e",
    "\r\n\t\v\f\u0085\u2028\u2029 ",
    "0123456789",
    "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "e\u0301\u0323\u0308a\u20dd",
    "漢字かな交じり文한국어",
    " \u00a0\u3000\u2003\u200b",
    "'sStTrReEvVmMlLdD",
    LETTERS,
    "\ufeff\ufffd\uffff\U0010ffff",
    "①½Ⅷ٣१",
    '!?.,;:-_()[]{}<>|"\\/',
]
PIECES = [
    "<|endoftext|>",
    "<|endoftext",
    "don't",
    "I'LL",
    "  \n\n  ",
    "\r\n",
    "\n\r",
    "http://a.b/c?d=e",
    "\\ud800",
    "ß",
    "İ",
    "\u017f",
    "'\u017f",
]


def adversarial(count):
    """Documents that trip tokenisers and readers, the same at each call."""
    generator = random.Random(2357)

    def some():
        kind = generator.randrange(12)
        if kind == 0:
            return generator.choice(
                ["", " ", "\n", " " * generator.randrange(1, 400), "\n" * generator.randrange(1, 99)]
            )
        if kind == 1:
            return "".join(generator.choices("0123456789", k=generator.randrange(1, 300)))
        if kind == 2:
            return "".join(generator.choices(PIECES, k=generator.randrange(1, 20)))
        if kind == 3:
            return "".join(chr(generator.randrange(0x110000)) for _ in range(generator.randrange(1, 40)))
        if kind == 4:
            return generator.choice("".join(ALPHABETS)) * generator.randrange(1, 200)
        if kind == 5:
            return "".join(generator.choices("".join(ALPHABETS), k=generator.randrange(1, 80)))
        mixed = generator.sample(ALPHABETS, k=generator.randrange(1, 4))
        return "".join(
            (
                generator.choice(PIECES)
                if generator.random() < 0.05
                else generator.choice(generator.choice(mixed))
            )
            for _ in range(generator.randrange(1, 60))
        )

    documents = [some() for _ in range(count - 2)]
    documents.insert(count // 3, "".join(generator.choices(LETTERS, k=1 << 20)))
    documents.insert(count // 2, "日本語" * 100_000)
    return documents


def test_adversarial_documents_get_the_tokens_of_tiktoken(tmp_path, bpe_cache):
    texts = adversarial(6_000)
    members = [
        (f"{place:05d}.jsonl.zst", compress(lines(texts[place : place + 1000])))
        for place in range(0, len(texts), 1000)
    ]
    assert prepare(tmp_path / "set", write_tar(tmp_path / "a.tar", members), workers=2, val_share=0.01) == 0
    splits = {name: iter(split_documents(np.fromfile(tmp_path / "set" / name, dtype="<u2"))) for name in BINS}
    chosen = is_validation(0, len(texts), 0.01)
    encoding = gpt2()
    wrong = [
        text[:80]
        for text, is_val in zip(texts, chosen, strict=True)
        if encoding.encode_ordinary(text) != next(splits["val.bin" if is_val else "train.bin"])
    ]
    assert (wrong, [list(rest) for rest in splits.values()]) == ([], [[], []])


@pytest.fixture(scope="module")
def engines(ranks_folder):
    pytest.importorskip("gigatoken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder))
        return Gigatoken(), Tiktoken()


@settings(max_examples=300)
@given(texts=st.lists(st.text(), min_size=1, max_size=6))
def test_gigatoken_equals_tiktoken(engines, texts):
    fast, reference = (engine.encode(texts) for engine in engines)
    assert [part.tolist() for part in fast] == [part.tolist() for part in reference]


class Wrong(Tiktoken):
    """An engine that errs in every document from `first` on."""

    name = "wrong"

    def __init__(self, first):
        super().__init__()
        self.first, self.seen = first, 0

    def one(self, text):
        self.seen += 1
        return [1] if self.seen > self.first else super().one(text)


@pytest.fixture
def wrong_from(bpe_cache):
    def make(first):
        checked = Checked(0)
        checked.engine, checked.reference = Wrong(first), Tiktoken()
        return checked

    return make


def test_engine_that_errs_in_the_first_document_is_stopped(wrong_from):
    with pytest.raises(
        UserError, match=r"a\.tar: 3\.jsonl\.zst: document 1 is encoded differently by wrong and tiktoken"
    ):
        wrong_from(0).encode(["hello"], "a.tar: 3.jsonl.zst")


def test_engine_that_errs_later_is_found_by_the_sample(wrong_from):
    checked = wrong_from(10)
    with pytest.raises(UserError, match=r"a\.jsonl: document \d+ is encoded differently"):
        for _ in range(40):
            checked.encode(["hello"] * 1000, "a.jsonl")


# damage

GOOD = lines(f"document {number} " * 20 for number in range(60))
BAD_LINES = {
    "bad JSON": b'{"text": "cut',
    "missing key": b'{"title": "no text"}',
    "null": b'{"text": null}',
    "a number": b'{"text": 5}',
    "invalid UTF-8": b'{"text": "\xff\xfe"}',
    "overlong UTF-8": b'{"text": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"text": "\xed\xa0\x80"}',
    "UTF-16": '{"text": "abc"}'.encode("utf-16-le"),
    "an array": b'["text"]',
    "not a number": b"NaN",
    "deeply nested": b'{"text": "a", "b": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "endless number": b'{"text": ' + b"9" * 100_000 + b"}",
    "two objects": b'{"text": "a"} {"text": "b"}',
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_line_is_named_with_file_and_member(tmp_path, bpe_cache, capfd, line):
    archive = write_tar(
        tmp_path / "a.tar",
        [("0.jsonl.zst", compress(GOOD)), ("1.jsonl.zst", compress(GOOD + line + b"\n" + GOOD))],
    )
    assert f"{archive}: 1.jsonl.zst: line 61: " in refusal(capfd, tmp_path / "set", archive)


def whole_tar(folder, *more):
    return write_tar(
        folder / "a.tar", [("0.jsonl.zst", compress(GOOD)), ("1.jsonl.zst", compress(GOOD)), *more]
    )


def cut_tar(folder, where):
    archive = whole_tar(folder)
    header, content = offsets(archive)[1]
    keep = {
        "in a header": header + 100,
        "between members": header,
        "in a member": content + 50,
        "in the first header": 100,
        "to nothing": 0,
        "in the mark": (content + len(compress(GOOD)) + 511) // 512 * 512 + 512,
    }[where]
    os.truncate(archive, keep)
    return archive


def damaged_member(edit):
    def make(folder):
        return edit_members(whole_tar(folder), edit)

    return make


def damaged_header(content):
    def make(folder):
        archive = whole_tar(folder)
        return overwrite(archive, offsets(archive)[1][0], content)

    return make


def odd_entry(member):
    return lambda folder: whole_tar(folder, (member, b""))


def file_of(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def parquet_without_column(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": DOCUMENTS}), folder / "a.parquet")
    return folder / "a.parquet"


def parquet_with_flipped_bytes(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": DOCUMENTS * 50}), folder / "a.parquet")
    return overwrite(folder / "a.parquet", 4, b"\xff" * 60)


DAMAGES = {
    "frame cut short": (damaged_member(lambda content: content[:-20]), r"a\.tar: \d\.jsonl\.zst"),
    "flipped bytes": (
        damaged_member(lambda content: content[:30] + b"\xff" * 30 + content[60:]),
        r"a\.tar: \d\.jsonl\.zst",
    ),
    "flipped checksum": (
        damaged_member(lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        r"a\.tar: \d\.jsonl\.zst",
    ),
    "bytes after the frame": (damaged_member(lambda content: content + b"more"), r"a\.tar: \d\.jsonl\.zst"),
    "not zstandard": (damaged_member(lambda content: b"plain text\n" * 20), r"a\.tar: \d\.jsonl\.zst"),
    "tar cut in a header": (lambda folder: cut_tar(folder, "in a header"), r"a\.tar is damaged or cut short"),
    "tar cut between members": (
        lambda folder: cut_tar(folder, "between members"),
        r"a\.tar is damaged or cut short",
    ),
    "tar cut in a member": (lambda folder: cut_tar(folder, "in a member"), r"a\.tar is damaged or cut short"),
    "tar cut in the first header": (
        lambda folder: cut_tar(folder, "in the first header"),
        r"a\.tar is damaged or cut short",
    ),
    "tar cut to nothing": (lambda folder: cut_tar(folder, "to nothing"), r"a\.tar is damaged or cut short"),
    "tar with half an end mark": (
        lambda folder: cut_tar(folder, "in the mark"),
        r"a\.tar is damaged or cut short",
    ),
    "second header overwritten": (damaged_header(b"\xff" * 512), r"a\.tar"),
    "second header all zeros": (damaged_header(bytes(512)), r"a\.tar"),
    "flipped byte in the second header": (damaged_header(b"X"), r"a\.tar"),
    "entry with ..": (
        odd_entry(entry("../../outside.jsonl")),
        r"a\.tar: \.\./\.\./outside\.jsonl: the entry lies outside",
    ),
    "absolute entry": (
        odd_entry(entry("/etc/outside.jsonl")),
        r"a\.tar: /etc/outside\.jsonl: the entry lies outside",
    ),
    "symbolic link": (
        odd_entry(entry("link.jsonl", type=b"2", linkname="/etc/passwd")),
        r"a\.tar: link\.jsonl: the entry is a link",
    ),
    "hard link": (
        odd_entry(entry("link.jsonl", type=b"1", linkname="0.jsonl.zst")),
        r"a\.tar: link\.jsonl: the entry is a link",
    ),
    "empty tar": (lambda folder: write_tar(folder / "a.tar", []), r"a\.tar: nothing to read"),
    "gzip cut short": (file_of("a.jsonl.gz", gzip.compress(GOOD)[:-30]), r"a\.jsonl\.gz"),
    "gzip with a wrong checksum": (
        file_of("a.jsonl.gz", gzip.compress(GOOD)[:-8] + bytes(8)),
        r"a\.jsonl\.gz",
    ),
    "not gzip": (file_of("a.jsonl.gz", GOOD), r"a\.jsonl\.gz"),
    "zstandard file of no bytes": (file_of("a.jsonl.zst", b""), r"a\.jsonl\.zst|0 documents"),
    "text that is not UTF-8": (file_of("a.txt", b"caf\xe9"), r"a\.txt"),
    "parquet garbage": (file_of("a.parquet", b"PAR1" + b"garbage" * 99 + b"PAR1"), r"a\.parquet"),
    "parquet cut short": (file_of("a.parquet", b"PAR1"), r"a\.parquet"),
    "parquet without the column": (parquet_without_column, r"a\.parquet: no column 'text'"),
    "parquet with flipped bytes": (parquet_with_flipped_bytes, r"a\.parquet"),
    "unknown kind of file": (file_of("a.docx", b"hello"), r"a\.docx: not a \.tar or one of"),
    "no such file": (lambda folder: folder / "nowhere.tar", r"nowhere\.tar: no such file"),
    "folder of nothing": (lambda folder: folder, r"nothing to read"),
}


@pytest.mark.parametrize(("make", "place"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(tmp_path, bpe_cache, capfd, make, place):
    (tmp_path / "raw").mkdir()
    said = refusal(capfd, tmp_path / "set", make(tmp_path / "raw"))
    assert re.search(place, said), said


# bad lines that are borne


@pytest.fixture
def flawed(tmp_path, bpe_cache):
    """Two files with seven bad lines between them."""
    for name, count in (("a", 3), ("b", 4)):
        (tmp_path / f"{name}.jsonl").write_bytes(
            lines(DOCUMENTS) + b"{\n" * count + lines(["end of " + name])
        )
    return [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "set"


def test_bad_lines_up_to_max_bad_are_left_out(flawed):
    prepare(flawed[1], *flawed[0], max_bad=7)
    assert all_documents(flawed[1]) == sorted([*DOCUMENTS, *DOCUMENTS, "end of a", "end of b"])


def test_meta_counts_bad_lines(flawed):
    prepare(flawed[1], *flawed[0], max_bad=9)
    assert json.loads((flawed[1] / "meta.json").read_text())["bad_lines"] == 7


def test_first_bad_lines_are_shown(flawed, capsys):
    prepare(flawed[1], *flawed[0], max_bad=7)
    assert f"left out: {flawed[0][0]}: line 8: not JSON" in capsys.readouterr().out


def test_max_bad_counts_the_lines_of_all_files(flawed, capfd):
    assert "--max-bad is 6" in refusal(capfd, flawed[1], *flawed[0], max_bad=6)


def test_bad_lines_of_an_earlier_run_count_too(flawed, capfd):
    refusal(capfd, flawed[1], *flawed[0], max_bad=6)
    assert "--max-bad is 2" in refusal(capfd, flawed[1], *flawed[0], max_bad=2)


def test_entries_outside_the_archive_count_as_bad(tmp_path, bpe_cache):
    archive = whole_tar(tmp_path, (entry("../outside.jsonl"), b""))
    prepare(tmp_path / "set", archive, max_bad=1)
    assert json.loads((tmp_path / "set" / "meta.json").read_text())["bad_lines"] == 1
