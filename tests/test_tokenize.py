"""From raw files to bins: the same bytes whatever happens on the way, and a clear error for everything
that is damaged.
"""

import errno
import gzip
import hashlib
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import inspect, open_splits
from data.bins import is_prepared
from data.bpe import gpt2
from data.corpus import stdlib_documents
from data.encode import Checked, Gigatoken, Tiktoken
from data.setup import ensure_prepared
from data.split import is_validation
from data.tokenize import delete_raw, main, prepare_stdlib, working_folder
from errors import UserError
from tests.corpora import (
    compress,
    decoded,
    edit_members,
    entry,
    lines,
    offsets,
    overwrite,
    split_documents,
    write_tar,
)
from tests.programs import run, start

pytestmark = pytest.mark.slow  # each starts worker processes

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


def prepare(folder, *inputs, **options):
    return main(words(folder, *inputs, **options))


def program(folder, *inputs, **options):
    """As `python -m data.tokenize`, but that small shards, too, are done one by one."""
    code = "import sys, data.tokenize as own; own.GROUP_BYTES = 1; sys.exit(own.main())"
    return [sys.executable, "-c", code, *words(folder, *inputs, **options)]


def hashes(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in BINS}


def all_documents(folder):
    """Texts of both splits, sorted, for corpora whose order is not the point."""
    return sorted(decoded(folder / "train.bin") + decoded(folder / "val.bin"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def corpus(tmp_path, bpe_cache):
    """A file of DOCUMENTS, and the folder to prepare."""
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(lines(DOCUMENTS))
    return path, tmp_path / "set"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, ranks_folder):
    """DOCUMENTS as a dataset: the folder and what meta.json holds. Not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    path = folder / "corpus.jsonl"
    path.write_bytes(lines(DOCUMENTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder))
        assert prepare(folder / "set", path) == 0
    return folder / "set", json.loads((folder / "set" / "meta.json").read_text())


@pytest.fixture
def own(prepared, tmp_path, bpe_cache):
    """A copy of `prepared` that may be changed."""
    folder = tmp_path / "set"
    folder.mkdir()
    for path in prepared[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# what is written


@pytest.mark.essential
def test_every_document_is_in_one_of_the_splits(prepared, bpe_cache):
    assert all_documents(prepared[0]) == sorted(DOCUMENTS)


def test_training_documents_keep_their_order(prepared, bpe_cache):
    validation = decoded(prepared[0] / "val.bin")
    assert decoded(prepared[0] / "train.bin") == [text for text in DOCUMENTS if text not in validation]


@pytest.mark.parametrize("name", BINS)
def test_every_document_ends_with_end_of_text(prepared, name):
    tokens = np.fromfile(prepared[0] / name, dtype="<u2")
    assert ((tokens == 50256).sum(), tokens[-1]) == (prepared[1]["splits"][name[:-4]]["documents"], 50256)


def test_literal_end_of_text_stays_ordinary_text(prepared, bpe_cache):
    tokens = gpt2().encode_ordinary(DOCUMENTS[2])
    assert tokens in split_documents(np.fromfile(prepared[0] / "train.bin", dtype="<u2"))


@pytest.mark.parametrize("name", BINS)
def test_meta_has_the_sha256_of_each_bin(prepared, name):
    assert prepared[1]["splits"][name[:-4]]["sha256"] == hashes(prepared[0])[name]


@pytest.mark.parametrize("name", BINS)
def test_meta_counts_tokens(prepared, name):
    assert prepared[1]["splits"][name[:-4]]["tokens"] == (prepared[0] / name).stat().st_size // 2


@pytest.mark.parametrize("name", BINS)
def test_meta_has_the_largest_token(prepared, name):
    assert (
        prepared[1]["splits"][name[:-4]]["largest_token"]
        == np.fromfile(prepared[0] / name, dtype="<u2").max()
    )


def test_meta_counts_documents(prepared):
    assert sum(split["documents"] for split in prepared[1]["splits"].values()) == len(DOCUMENTS)


def test_meta_counts_bytes_of_text(prepared):
    assert prepared[1]["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)


def test_written_bins_open(prepared):
    assert open_splits(str(prepared[0]), None, 1, 50257).train.n_windows > 0


def test_preparing_leaves_only_the_dataset(prepared):
    assert names(prepared[0]) == ["meta.json", "train.bin", "val.bin"]


def test_table_at_the_end_tells_counts_speed_and_memory(corpus, capsys):
    prepare(corpus[1], corpus[0])
    table = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert table == ["documents", "tokens", "bytes per token", "left out", "engine", "seconds", "peak memory"]


def test_prepared_dataset_is_left_as_it_is(own, tmp_path):
    before = hashes(own)
    (tmp_path / "other.jsonl").write_bytes(lines(["another", "corpus"]))
    assert (prepare(own, tmp_path / "other.jsonl"), hashes(own)) == (0, before)


def test_force_prepares_again(own, tmp_path):
    (tmp_path / "other.jsonl").write_bytes(lines(["another", "corpus"]))
    prepare(own, tmp_path / "other.jsonl", force=True)
    assert all_documents(own) == ["another", "corpus"]


def test_force_that_fails_leaves_the_older_bins(own, tmp_path):
    before = hashes(own)
    (tmp_path / "other.jsonl").write_bytes(b"{\n")
    assert (prepare(own, tmp_path / "other.jsonl", force=True), hashes(own)) == (2, before)


def test_splits_of_two_corpora_are_never_taken_for_a_dataset(own, tmp_path):
    before = hashes(own)
    (tmp_path / "other.jsonl").write_bytes(lines(["another", "corpus"]))
    (own / "meta.json").unlink()
    (own / "meta.json").mkdir()  # so that it breaks off between val.bin and train.bin
    prepare(own, tmp_path / "other.jsonl", force=True)
    assert not is_prepared(own) or hashes(own) == before


@pytest.mark.parametrize("count", [1, 2, 16])
def test_number_of_workers_does_not_change_a_byte(tmp_path, bpe_cache, count):
    generator = random.Random(5)
    texts = [" ".join(generator.choices(DOCUMENTS, k=generator.randrange(20))) for _ in range(2000)]
    archive = write_tar(
        tmp_path / "a.tar",
        [(f"{i:02d}.jsonl.zst", compress(lines(texts[100 * i : 100 * i + 100]))) for i in range(20)],
    )
    prepare(tmp_path / "set", archive, workers=count, val_share=0.05)
    chosen = is_validation(0, 2000, 0.05)
    expected = [
        [text for text, is_val in zip(texts, chosen, strict=True) if is_val == wanted]
        for wanted in (False, True)
    ]
    assert [decoded(tmp_path / "set" / name) for name in BINS] == expected


def test_stdlib_is_prepared_when_first_asked_for(tmp_path, bpe_cache):
    ensure_prepared("stdlib", str(tmp_path))
    assert open_splits("stdlib", str(tmp_path), 256, 50257).train.n_windows > 1000


def test_prepared_stdlib_decodes_to_its_documents(tmp_path, bpe_cache):
    prepare_stdlib(tmp_path)
    texts = [text for _, text in stdlib_documents()]
    chosen = is_validation(0, len(texts), 0.01)
    assert decoded(tmp_path / "val.bin") == [
        text for text, is_val in zip(texts, chosen, strict=True) if is_val
    ]


# the split


def test_split_of_documents_never_changes():
    assert np.flatnonzero(is_validation(0, 1300, 0.01)).tolist() == [
        453,
        889,
        935,
        1159,
        1265,
        1272,
        1285,
        1294,
    ]


def test_split_is_by_number_wherever_it_is_asked():
    assert np.array_equal(is_validation(700, 5000, 0.05), is_validation(0, 5700, 0.05)[700:])


@pytest.mark.parametrize("share", [0.0005, 0.05, 0.5])
def test_share_of_validation_documents_is_as_asked(share):
    assert is_validation(0, 1_000_000, share).sum() == pytest.approx(1_000_000 * share, rel=0.1)


@pytest.mark.parametrize("share", [0.0005, 0.9999])
def test_both_splits_of_two_documents_have_one(tmp_path, bpe_cache, share):
    (tmp_path / "a.jsonl").write_bytes(lines(["one", "two"]))
    prepare(tmp_path / "set", tmp_path / "a.jsonl", val_share=share)
    assert sorted(len(decoded(tmp_path / "set" / name)) for name in BINS) == [1, 1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\n\n", "0 documents are too few"),
        (lines(["only one"]), "1 documents are too few"),
        (b"", "1 empty files, the first is "),
    ],
    ids=["blank", "one", "empty"],
)
def test_too_few_documents_for_two_splits_are_refused(tmp_path, bpe_cache, capsys, content, problem):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert (prepare(tmp_path / "set", tmp_path / "a.jsonl"), problem in capsys.readouterr().err) == (2, True)


# kinds of input


def as_jsonl(folder):
    (folder / "a.jsonl").write_bytes(lines(DOCUMENTS))


def as_gzip(folder):
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(DOCUMENTS)))


def as_zstandard(folder):
    (folder / "a.jsonl.zst").write_bytes(compress(lines(DOCUMENTS)))


def as_several_frames(folder):
    (folder / "a.jsonl.zst").write_bytes(compress(lines(DOCUMENTS[:3])) + compress(lines(DOCUMENTS[3:])))


def as_texts(folder):
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number}.txt").write_bytes(text.encode())


def as_parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"number": list(range(len(DOCUMENTS))), "text": DOCUMENTS}),
        folder / "a.parquet",
        row_group_size=3,
    )


def as_folders(folder):
    for number, text in enumerate(DOCUMENTS):
        (folder / f"part{number % 2}").mkdir(exist_ok=True)
        (folder / f"part{number % 2}" / f"{number}.jsonl").write_bytes(lines([text]))
    (folder / "README.md").write_text("not a document")


def as_tar_of_all_kinds(folder):
    write_tar(
        folder / "a.tar",
        [
            ("a.jsonl", lines(DOCUMENTS[:2])),
            ("b/c.jsonl.gz", gzip.compress(lines(DOCUMENTS[2:4]))),
            ("d.txt", DOCUMENTS[4].encode()),
            ("e.jsonl.zst", compress(lines(DOCUMENTS[5:]))),
            ("README.md", b"no"),
        ],
    )


def without_last_line_feed(folder):
    (folder / "a.jsonl").write_bytes(lines(DOCUMENTS).rstrip(b"\n"))


def with_carriage_returns(folder):
    (folder / "a.jsonl").write_bytes(lines(DOCUMENTS).replace(b"\n", b"\r\n"))


@pytest.mark.parametrize(
    "make",
    [
        as_jsonl,
        as_gzip,
        as_zstandard,
        as_several_frames,
        as_texts,
        as_parquet,
        as_folders,
        as_tar_of_all_kinds,
        without_last_line_feed,
        with_carriage_returns,
    ],
    ids=lambda make: make.__name__,
)
def test_kind_of_input_is_read_whole(tmp_path, bpe_cache, make):
    (tmp_path / "raw").mkdir()
    make(tmp_path / "raw")
    prepare(tmp_path / "set", tmp_path / "raw")
    assert all_documents(tmp_path / "set") == sorted(DOCUMENTS)


def test_several_inputs_are_taken_in_the_order_given(tmp_path, bpe_cache):
    for name in ("z", "a"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(f"{name}{number}" for number in range(3)))
    prepare(tmp_path / "set", tmp_path / "z.jsonl", tmp_path / "a.jsonl")
    left_out = decoded(tmp_path / "set" / "val.bin")
    assert decoded(tmp_path / "set" / "train.bin") == [
        text for text in ("z0", "z1", "z2", "a0", "a1", "a2") if text not in left_out
    ]


@pytest.mark.essential
def test_text_may_stand_under_another_key(tmp_path, bpe_cache):
    (tmp_path / "a.jsonl").write_bytes(lines(DOCUMENTS, key="body"))
    prepare(tmp_path / "set", tmp_path / "a.jsonl", text_key="body")
    assert all_documents(tmp_path / "set") == sorted(DOCUMENTS)


def test_column_of_parquet_may_have_another_name(tmp_path, bpe_cache):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"text": ["no"] * len(DOCUMENTS), "body": DOCUMENTS}), tmp_path / "a.parquet"
    )
    prepare(tmp_path / "set", tmp_path / "a.parquet", text_key="body")
    assert all_documents(tmp_path / "set") == sorted(DOCUMENTS)


# adversarial documents


def adversarial(count):
    """Documents that trip tokenisers and readers, the same at each call."""
    generator = random.Random(2357)
    letters = "abcdefghijklmnopqrstuvwxyz"
    alphabets = [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f3fd"
        "\u2764\ufe0f\U0001f1e9\U0001f1ea",
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
        letters,
        "\ufeff\ufffd\uffff\U0010ffff",
        "①½Ⅷ٣१",
        '!?.,;:-_()[]{}<>|"\\/',
    ]
    pieces = [
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

    def some():
        kind = generator.randrange(12)
        if kind == 0:
            return generator.choice(
                ["", " ", "\n", " " * generator.randrange(1, 400), "\n" * generator.randrange(1, 99)]
            )
        if kind == 1:
            return "".join(generator.choices("0123456789", k=generator.randrange(1, 300)))
        if kind == 2:
            return "".join(generator.choices(pieces, k=generator.randrange(1, 20)))
        if kind == 3:
            return "".join(chr(generator.randrange(0x110000)) for _ in range(generator.randrange(1, 40)))
        if kind == 4:
            return generator.choice("".join(alphabets)) * generator.randrange(1, 200)
        if kind == 5:
            return "".join(generator.choices("".join(alphabets), k=generator.randrange(1, 80)))
        mixed = generator.sample(alphabets, k=generator.randrange(1, 4))
        return "".join(
            (
                generator.choice(pieces)
                if generator.random() < 0.05
                else generator.choice(generator.choice(mixed))
            )
            for _ in range(generator.randrange(1, 60))
        )

    documents = [some() for _ in range(count - 2)]
    documents.insert(count // 3, "".join(generator.choices(letters, k=1 << 20)))
    documents.insert(count // 2, "日本語" * 100_000)
    return documents


def test_adversarial_documents_get_the_tokens_of_tiktoken(tmp_path, bpe_cache):
    texts = adversarial(20_000)
    members = [
        (f"{place:05d}.jsonl.zst", compress(lines(texts[place : place + 4000])))
        for place in range(0, len(texts), 4000)
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


# restarts


@pytest.fixture
def broken_off(tmp_path, bpe_cache, capfd, monkeypatch):
    """A preparation that encoded a.jsonl and stopped at b.jsonl: its inputs and folder."""
    monkeypatch.setattr("data.tokenize.GROUP_BYTES", 1)
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    inputs[0].write_bytes(lines(f"document {number}" for number in range(10)))
    inputs[1].write_bytes(lines(["good"]) + b"{\n")
    refusal(capfd, tmp_path / "set", *inputs)
    return inputs, tmp_path / "set"


def first_shard(folder):
    return (folder / ".tokenize" / "000000.json").stat().st_mtime_ns


def test_finished_shard_is_not_encoded_again(broken_off, capfd):
    inputs, folder = broken_off
    before = first_shard(folder)
    refusal(capfd, folder, *inputs)
    assert first_shard(folder) == before


def test_restart_says_what_is_done(broken_off, capfd):
    prepare(broken_off[1], *broken_off[0], max_bad=1)
    assert "1 of 2 shards are done already" in capfd.readouterr().out


def test_changed_input_starts_over(broken_off):
    inputs, folder = broken_off
    inputs[0].write_bytes(inputs[0].read_bytes().replace(b"document", b"DOCUMENT"))
    prepare(folder, *inputs, max_bad=1)
    assert all_documents(folder) == sorted([*(f"DOCUMENT {number}" for number in range(10)), "good"])


def test_changed_text_key_starts_over(broken_off, capfd):
    inputs, folder = broken_off
    assert "no text under 'body'" in refusal(capfd, folder, *inputs, text_key="body", max_bad=3)


@pytest.mark.parametrize("ending", ["bin", "len"])
def test_finished_shard_that_lost_bytes_is_encoded_again(broken_off, ending):
    inputs, folder = broken_off
    os.truncate(folder / ".tokenize" / f"000000.{ending}", 2)
    prepare(folder, *inputs, max_bad=1)
    assert len(all_documents(folder)) == 11


def test_leftovers_of_a_killed_run_are_not_taken_for_a_dataset(broken_off):
    (broken_off[1] / "val.bin").write_bytes(b"ab" * 99)
    (broken_off[1] / ".train.bin.1.tmp").write_bytes(b"ab" * 99)
    with pytest.raises(UserError, match="is not prepared"):
        open_splits(str(broken_off[1]), None, 8, 50304)


def test_leftovers_of_a_killed_run_are_cleared_away(broken_off):
    (broken_off[1] / ".train.bin.1.tmp").write_bytes(b"ab" * 99)
    prepare(broken_off[1], *broken_off[0], max_bad=1)
    assert names(broken_off[1]) == ["meta.json", "train.bin", "val.bin"]


def test_second_preparation_of_a_folder_is_refused(corpus, capfd):
    with working_folder(corpus[1], {}):
        assert "is being prepared by another process" in refusal(capfd, corpus[1], corpus[0])


SHARDS = 120


@pytest.fixture(scope="module")
def big(tmp_path_factory, ranks_folder):
    """A corpus of many members, and the hashes of an unbroken preparation."""
    folder = tmp_path_factory.mktemp("big")
    texts = [text for _, text in stdlib_documents()][: SHARDS * 5]
    archive = write_tar(
        folder / "a.tar", [(f"{n:04d}.jsonl.zst", compress(lines(texts[n::SHARDS]))) for n in range(SHARDS)]
    )
    outcome = run(
        program(folder / "set", archive, workers=2, val_share=0.05), TIKTOKEN_CACHE_DIR=str(ranks_folder)
    )
    assert outcome.returncode == 0, outcome.stderr
    return archive, hashes(folder / "set")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid):
    try:
        own = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return own + [deeper for child in own for deeper in descendants(child)]


def wait_until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def finished(folder):
    return len(list(folder.glob(".tokenize/[0-9]*.json")))


def kill_at(folder, archive, shards, ranks_folder):
    """Start a preparation, kill its main process alone when that many shards are done; the processes it
    had started.
    """
    process = start(program(folder, archive, workers=2, val_share=0.05), TIKTOKEN_CACHE_DIR=str(ranks_folder))
    try:
        assert wait_until(lambda: finished(folder) >= shards or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        workers = descendants(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    return workers


def test_kills_at_random_moments_do_not_change_a_byte(big, tmp_path, ranks_folder):
    for shards in sorted(random.Random(2357).sample(range(SHARDS - 5), 5)):
        kill_at(tmp_path / "set", big[0], shards, ranks_folder)
        assert not (tmp_path / "set" / "train.bin").exists()
    outcome = run(
        program(tmp_path / "set", big[0], workers=2, val_share=0.05), TIKTOKEN_CACHE_DIR=str(ranks_folder)
    )
    assert (outcome.returncode, hashes(tmp_path / "set")) == (0, big[1]), outcome.stderr


def test_no_worker_survives_its_parent(big, tmp_path, ranks_folder):
    workers = kill_at(tmp_path / "set", big[0], 10, ranks_folder)
    assert len(workers) >= 2
    assert wait_until(lambda: not any(map(alive, workers)), 10)


def test_loss_of_a_worker_does_not_hang_the_job(big, tmp_path, ranks_folder):
    process = start(
        program(tmp_path / "set", big[0], workers=2, val_share=0.05), TIKTOKEN_CACHE_DIR=str(ranks_folder)
    )
    try:
        assert wait_until(lambda: finished(tmp_path / "set") >= 10)
        worker = next(
            pid
            for pid in descendants(process.pid)
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(worker, signal.SIGKILL)
        process.communicate(timeout=45)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 2 or (process.returncode == 0 and hashes(tmp_path / "set") == big[1])


# raw files that go when the bins are right


def test_delete_raw_deletes_the_input(corpus):
    prepare(corpus[1], corpus[0], delete_raw=True)
    assert (is_prepared(corpus[1]), corpus[0].exists()) == (True, False)


def test_raw_files_are_kept_otherwise(corpus):
    prepare(corpus[1], corpus[0])
    assert corpus[0].exists()


def test_delete_raw_keeps_the_input_of_a_failed_preparation(corpus, capfd):
    corpus[0].write_bytes(corpus[0].read_bytes() + b"{\n")
    refusal(capfd, corpus[1], corpus[0], delete_raw=True)
    assert corpus[0].exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: os.truncate(path, path.stat().st_size - 2)], ids=["flipped", "cut short"]
)
@pytest.mark.parametrize("name", BINS)
def test_delete_raw_keeps_the_input_of_damaged_bins(own, tmp_path, name, damage):
    raw = tmp_path / "corpus.jsonl"
    raw.write_bytes(lines(DOCUMENTS))
    damage(own / name)
    with pytest.raises(UserError, match=rf"{re.escape(name)}[\s\S]*the raw files are kept"):
        delete_raw([raw], own, print)
    assert raw.exists()


def test_delete_raw_keeps_folders(tmp_path, bpe_cache):
    (tmp_path / "raw").mkdir()
    as_jsonl(tmp_path / "raw")
    prepare(tmp_path / "set", tmp_path / "raw", delete_raw=True)
    assert (tmp_path / "raw" / "a.jsonl").exists()


# looking at a dataset


def test_inspect_counts_documents_and_tokens(own, capsys):
    inspect.main([str(own)])
    expected = {
        name: (
            f"{len(decoded(own / f'{name}.bin'))} documents, {(own / f'{name}.bin').stat().st_size // 2:,}"
            " tokens"
        )
        for name in ("train", "val")
    }
    said = dict(
        line.split(maxsplit=1)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("train ", "val "))
    )
    assert {name: said[name].rpartition(", largest")[0] for name in said} == expected


def test_inspect_finds_good_bins_right(own, capsys):
    assert (inspect.main([str(own)]), "checksums  right" in capsys.readouterr().out) == (0, True)


@pytest.mark.parametrize("name", BINS)
def test_inspect_finds_a_flipped_bit(own, capsys, name):
    flip(own / name)
    assert (inspect.main([str(own)]), f"{name} has another SHA-256" in capsys.readouterr().out) == (1, True)


def test_inspect_shows_documents(own, tmp_path, capsys):
    (tmp_path / "other.jsonl").write_bytes(lines(["the very same words"] * 9))
    prepare(own, tmp_path / "other.jsonl", force=True)
    capsys.readouterr()
    inspect.main([str(own)])
    assert capsys.readouterr().out.splitlines().count("the very same words") == 3


def test_inspect_draws_the_lengths(own, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    inspect.main([str(own), "--png", str(tmp_path / "lengths.png")])
    picture = image.imread(tmp_path / "lengths.png")
    assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.02


def test_inspect_tells_the_lengths_where_no_picture_can_be_written(own, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def refuse(path, write):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(inspect, "replace_atomically", refuse)
    assert inspect.main([str(own)]) == 0
    said = capsys.readouterr().out
    assert "lengths    median" in said and "no picture of the lengths" in said


def test_inspect_calls_bins_of_another_tool_undescribed_and_not_wrong(tmp_path, capsys):
    for name in BINS:
        np.arange(1000, dtype="<u2").tofile(tmp_path / name)
    assert (inspect.main([str(tmp_path)]), "checksums  none" in capsys.readouterr().out) == (0, True)


def test_inspect_does_not_take_another_tokenizer_for_gpt2(own, capsys):
    meta = json.loads((own / "meta.json").read_text())
    (own / "meta.json").write_text(json.dumps({**meta, "tokenizer": "llama"}))
    assert inspect.main([str(own)]) == 0
    said = capsys.readouterr().out
    assert "the tokenizer 'llama' is not known here" in said and "--- document" not in said


def test_inspect_refuses_a_folder_that_is_not_prepared(tmp_path, capsys):
    assert (inspect.main([str(tmp_path)]), "is not prepared" in capsys.readouterr().err) == (2, True)


# characters

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely — and more temperate:\n\U0001f33b" * 3


@pytest.fixture
def characters(tmp_path):
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8")
    code = main(
        ["--name", "shakespeare-char", "--data-dir", str(tmp_path), "--input", str(tmp_path / "verse.txt")]
    )
    assert code == 0
    return tmp_path / "shakespeare-char", json.loads(
        (tmp_path / "shakespeare-char" / "meta.json").read_text()
    )


def test_characters_are_given_back(characters):
    folder, meta = characters
    tokens = np.concatenate([np.fromfile(folder / name, dtype="<u2") for name in BINS])
    assert "".join(meta["characters"][token] for token in tokens) == VERSE


def test_vocabulary_of_characters_is_in_meta(characters):
    assert characters[1]["characters"] == "".join(sorted(set(VERSE)))


def test_last_tenth_of_the_characters_is_for_validation(characters):
    assert np.fromfile(characters[0] / "val.bin", dtype="<u2").size == pytest.approx(len(VERSE) / 10, abs=1)


def test_dataset_of_characters_opens_with_just_its_vocabulary(characters):
    assert open_splits(str(characters[0]), None, 8, len(set(VERSE))).meta["tokenizer"] == "char"


def test_inspect_finds_characters_right(characters):
    assert inspect.main([str(characters[0])]) == 0


def test_damaged_text_of_characters_is_refused(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9" * 20)
    assert (
        main(["--name", f"{tmp_path}/a-char", "--input", str(tmp_path / "a.txt")]),
        f"{tmp_path}/a.txt" in capsys.readouterr().err,
    ) == (2, True)


def test_characters_that_are_prepared_again_are_not_prepared_until_all_is_there(
    characters, tmp_path, monkeypatch
):
    from data import characters as module
    from data.bins import is_prepared

    def killed(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", killed)
    main(["--name", str(characters[0]), "--force", "--input", str(tmp_path / "verse.txt")])
    assert not is_prepared(characters[0])


# the command line


@pytest.mark.parametrize(
    "flags",
    [
        ["--workers", "0"],
        ["--val-share", "0"],
        ["--val-share", "1"],
        ["--max-bad", "many"],
        ["--max-bad", "-1"],
        ["--name", ""],
        ["--input", ""],
        ["--text-key", ""],
        ["--tokenizer", "bert"],
    ],
    ids=" ".join,
)
def test_bad_flag_is_named(capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert flags[0] in capsys.readouterr().err.splitlines()[-1]


def test_missing_download_names_the_command_that_fetches_it(tmp_path, capsys):
    assert (
        main(["--data-dir", str(tmp_path)]),
        "bash iridis/download-dataset/job.sh --full" in capsys.readouterr().err,
    ) == (2, True)


def test_folder_that_cannot_be_written_is_named(corpus, capsys):
    assert (
        prepare("/proc/nowhere", corpus[0]),
        "cannot prepare /proc/nowhere" in capsys.readouterr().err,
    ) == (2, True)
