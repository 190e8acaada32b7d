"""Corpora as people have them: nothing is read twice or left out in silence, and what cannot be read is
named.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile

import numpy as np
import pytest
import zstandard

from data import open_splits
from data.bpe import gpt2
from data.split import is_validation
from data.tokenize import main
from tests.corpora import compress, decoded, entry, lines, tokenize, write_tar
from tests.documents import TEXTS, put, read, refusal_of

# what stands in files

BOM = b"\xef\xbb\xbf"


def test_byte_order_mark_of_a_text_is_no_part_of_it(tmp_path):
    assert read(put(tmp_path, "a.txt", BOM + b"hello"))[0] == ["hello"]


@pytest.mark.parametrize(
    "content",
    [BOM + lines(TEXTS), lines(TEXTS[:1]) + BOM + lines(TEXTS[1:])],
    ids=["first", "of a joined file"],
)
def test_byte_order_mark_of_json_lines_is_passed_over(tmp_path, content):
    assert read(put(tmp_path, "a.jsonl", content)) == (TEXTS, [], {})


def test_byte_order_mark_within_a_document_stays(tmp_path):
    assert read(put(tmp_path, "a.jsonl", ["\ufeffa"]))[0] == ["\ufeffa"]


def test_blank_lines_are_counted_and_no_documents(tmp_path):
    blanks = b"\n\r\n \t\n".join(lines([text]) for text in TEXTS) + b"\n\n"
    assert read(put(tmp_path, "a.jsonl", blanks)) == (TEXTS, [], {"blank lines": 8})


def test_line_ends_of_windows_are_read_as_line_feeds_and_told(tmp_path):
    assert read(put(tmp_path, "a.txt", b"one\r\ntwo\r\n\rthree")) == (
        ["one\ntwo\n\rthree"],
        [],
        {"carriage returns of CRLF line ends": 2},
    )


def test_text_in_utf16_is_called_that(tmp_path):
    assert "it is UTF-16" in read(put(tmp_path, "a.txt", "hello".encode("utf-16")))[1][0].reason


def test_json_that_is_one_list_is_told_how_to_be_made_readable(tmp_path):
    assert "jq -c '.[]'" in read(put(tmp_path, "a.jsonl", b'[{"text": "a"}, {"text": "b"}]\n'))[1][0].reason


def test_json_over_several_lines_is_told_how_to_be_made_readable(tmp_path):
    assert "one object a line" in read(put(tmp_path, "a.json", b'[\n{"text": "a"}\n]\n'))[1][0].reason


# compressions

COMPRESSIONS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": compress}


@pytest.mark.parametrize("form", [".jsonl", ".json", ".ndjson", ".txt", ".JSONL"])
@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_compressed_forms_are_read(tmp_path, form, ending):
    texts = TEXTS[1:2] if form == ".txt" else TEXTS
    put(
        tmp_path,
        f"a{form}{ending}",
        COMPRESSIONS[ending](texts[0].encode() if form == ".txt" else lines(texts)),
    )
    assert read(tmp_path)[:2] == (texts, [])


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_compressed_streams_one_after_the_other_are_read_whole(tmp_path, ending):
    put(tmp_path, f"a.jsonl{ending}", b"".join(COMPRESSIONS[ending](lines([text])) for text in TEXTS))
    assert read(tmp_path)[0] == TEXTS


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-9],
        lambda raw: raw[:40] + bytes(30) + raw[70:],
        lambda raw: raw + b"garbage behind it",
    ],
    ids=["cut short", "overwritten", "followed"],
)
def test_damage_of_a_compressed_file_is_never_its_end(tmp_path, ending, damage):
    raw = COMPRESSIONS[ending](lines(f"document {number} {number**9}" for number in range(300)))
    bad = read(put(tmp_path, f"a.jsonl{ending}", damage(raw)))[1]
    assert bad and all(f"a.jsonl{ending}" in item.place for item in bad)


@pytest.mark.parametrize("log", [27, 28, 31])
def test_zstandard_windows_up_to_two_gib_are_read(tmp_path, log):
    compressor = zstandard.ZstdCompressor().compressobj()
    raw = bytearray(compressor.compress(lines(TEXTS)) + compressor.flush())
    raw[5] = log - 10 << 3  # the window that the frame declares
    assert read(put(tmp_path, "a.jsonl.zst", bytes(raw)))[:2] == (TEXTS, [])


def test_skippable_zstandard_frames_are_no_documents(tmp_path):
    skipped = b"\x50\x2a\x4d\x18\x05\x00\x00\x00seeks"
    assert read(put(tmp_path, "a.jsonl.zst", skipped + compress(lines(TEXTS)) + skipped))[:2] == (TEXTS, [])


# tars


def test_hidden_members_are_passed_over_and_those_below_a_dot_are_not(tmp_path):
    members = [
        ("./a.jsonl", lines(TEXTS)),
        ("./._a.jsonl", b"\0\5"),
        (".ipynb_checkpoints/a.jsonl", lines(TEXTS)),
        ("b.md", b"x"),
    ]
    assert read(write_tar(tmp_path / "a.tar", members)) == (
        TEXTS,
        [],
        {"hidden files and folders": 2, ".md files": 1},
    )


def test_tars_one_after_the_other_are_read_whole(tmp_path):
    parts = [
        write_tar(tmp_path / f"{n}.tar", [("a.jsonl", lines([f"part {n}"]))]).read_bytes() for n in range(3)
    ]
    assert read(put(tmp_path, "all.TAR", b"".join(parts)))[0] == ["part 0", "part 1", "part 2"]


def test_damaged_second_of_two_tars_is_refused(tmp_path):
    parts = [
        bytearray(write_tar(tmp_path / f"{n}.tar", [("a.jsonl", lines([f"part {n}"]))]).read_bytes())
        for n in range(2)
    ]
    parts[1][100] ^= 1
    assert "all.tar is damaged" in refusal_of(put(tmp_path, "all.tar", bytes(parts[0] + parts[1])))


def test_later_entry_of_the_same_name_replaces_the_earlier(tmp_path):
    archive = write_tar(
        tmp_path / "a.tar",
        [("./a.jsonl", lines(["old"])), ("b.jsonl", lines(["b"])), ("a.jsonl", lines(["old", "new"]))],
    )
    assert read(archive) == (
        ["b", "old", "new"],
        [],
        {"entries that a later one of the same name replaces": 1},
    )


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_members_are_read_with_their_holes(tmp_path, form):
    with open(tmp_path / "a.txt", "wb") as file:
        file.write(b"begin")
        file.seek(1 << 20)
        file.write(b"end")
    put(tmp_path, "b.txt", b"next")
    made = subprocess.run(
        ["tar", "-C", tmp_path, f"--format={form}", "-cSf", tmp_path / "a.tar", "a.txt", "b.txt"], check=False
    )
    if made.returncode:
        pytest.skip("no GNU tar here")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.next().issparse()
    assert read(tmp_path / "a.tar")[0] == ["begin" + "\0" * ((1 << 20) - 5) + "end", "next"]


# parquet


def parquet(folder, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({name: pyarrow.array(values, type=kind) for name, (values, kind) in columns.items()}),
        folder / "a.parquet",
    )
    return folder / "a.parquet"


@pytest.mark.parametrize("kind", ["binary", "large_binary", "large_string", "string", "dictionary"])
def test_columns_of_text_of_any_kind_are_read(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    chosen = (
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        if kind == "dictionary"
        else getattr(pyarrow, kind)()
    )
    values = [text.encode() for text in TEXTS] if "binary" in kind else TEXTS
    assert read(parquet(tmp_path, text=(values, chosen)))[:2] == (TEXTS, [])


def test_binary_column_that_is_no_utf8_is_bad(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    bad = read(parquet(tmp_path, text=([b"good", b"\xff"], pyarrow.binary())))[1]
    assert "row 2" in bad[0].place and "not UTF-8" in bad[0].reason


def test_parquet_in_a_tar_is_read(tmp_path):
    raw = parquet(tmp_path, text=(TEXTS, None)).read_bytes()
    assert read(write_tar(tmp_path / "a.tar", [("x.txt", b"x"), ("a.parquet", raw)]))[0] == ["x", *TEXTS]


# keys


@pytest.mark.parametrize(
    "value", [{"a": {"b": "found"}}, {"a.b": "found", "a": {"b": "other"}}], ids=["nested", "literal"]
)
def test_text_key_leads_into_objects(tmp_path, value):
    assert read(put(tmp_path, "a.jsonl", json.dumps(value).encode()), text_key="a.b")[0] == ["found"]


def test_text_key_leads_into_columns(tmp_path):
    assert (
        read(parquet(tmp_path, a=([{"b": text, "c": 1} for text in TEXTS], None)), text_key="a.b")[0] == TEXTS
    )


@pytest.mark.parametrize(
    "value", [{"a": "text"}, {"a": None}, {}, {"a": {"c": "x"}}, {"a": [{"b": "x"}]}], ids=str
)
def test_text_key_that_leads_nowhere_is_bad(tmp_path, value):
    assert [
        item.reason for item in read(put(tmp_path, "a.jsonl", json.dumps(value).encode()), text_key="a.b")[1]
    ] == ["no text under 'a.b'"]


def test_text_key_that_leads_nowhere_in_columns_is_bad(tmp_path):
    assert [
        "no column" in item.reason
        for item in read(parquet(tmp_path, a=([{"c": 1}], None)), text_key="a.b")[1]
    ] == [True]


# names


ODD = os.fsdecode(b"caf\xe9\n\x1b[31m.jsonl")


def test_names_that_are_no_utf8_are_read(tmp_path):
    assert read(put(tmp_path, ODD, TEXTS).parent)[0] == TEXTS


def test_names_that_are_no_utf8_are_shown_in_one_plain_line(tmp_path):
    put(tmp_path, ODD, b"{\n")
    assert read(tmp_path)[1][0].place == f"{tmp_path}/caf\\xe9\\n\\x1b[31m.jsonl: line 1"


def test_parquet_of_a_name_that_is_no_utf8_is_read(tmp_path):
    parquet(tmp_path, text=(TEXTS, None)).rename(tmp_path / os.fsdecode(b"caf\xe9.parquet"))
    assert read(tmp_path)[0] == TEXTS


def test_members_whose_names_are_no_utf8_are_read(tmp_path):
    raw = lines(TEXTS)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(entry(ODD, len(raw)), io.BytesIO(raw))
    assert read(tmp_path)[0] == TEXTS


# whole preparations, each in this process but for one worker


def prepare(folder, *words):
    return tokenize(["--name", str(folder), "--workers", "1", *map(str, words)])


@pytest.mark.slow
def test_what_is_passed_over_is_said_and_kept_in_meta(tmp_path, bpe_cache, capsys):
    put(tmp_path / "raw", ODD, b"\n".join(lines([text]) for text in TEXTS))
    put(tmp_path / "raw", ".hidden.jsonl", TEXTS)
    put(tmp_path / "raw", os.fsdecode(b"caf\xe9.md"), b"x")
    assert prepare(tmp_path / "set", "--input", tmp_path / "raw", tmp_path / "raw") == 0
    said = capsys.readouterr().out
    counts = {"blank lines": 2, "hidden files and folders": 1, ".md files": 1, "folders named twice": 1}
    assert json.loads((tmp_path / "set" / "meta.json").read_text())["passed_over"] == counts
    assert all(
        f"passed over: {count} {reason}, the first is {tmp_path}" in said for reason, count in counts.items()
    ), said


def test_corpus_of_nothing_but_what_is_passed_over_says_so(tmp_path, capsys):
    put(tmp_path, "corpus.tar.gz", b"x")
    assert prepare(tmp_path / "set", "--input", tmp_path) == 2
    said = capsys.readouterr().err
    assert "passed over: 1 .tar.gz archives (unpack them first)" in said and "nothing to read" in said


BOOK = "It was the best of times, it was the worst of times — “naïve” ☃日本語.\n" * 300


@pytest.fixture(scope="module")
def book(tmp_path_factory, ranks_folder):
    """One text as a dataset, its last fifth for validation."""
    folder = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder))
        assert (
            prepare(
                folder / "set", "--input", put(folder, "book.txt", BOOK.encode()), "--val-fraction", "0.2"
            )
            == 0
        )
    return folder / "set"


@pytest.mark.slow
def test_one_text_is_cut_in_two_and_nothing_is_lost(book, bpe_cache):
    assert [decoded(book / "train.bin")[0] + decoded(book / "val.bin")[0]] == [BOOK]


@pytest.mark.slow
def test_the_cut_leaves_the_fraction_for_validation(book):
    sizes = [np.fromfile(book / f"{name}.bin", dtype="<u2").size for name in ("train", "val")]
    assert sizes[1] / sum(sizes) == pytest.approx(0.2, abs=0.01)


@pytest.mark.slow
def test_bins_of_a_text_that_was_cut_are_right(book, bpe_cache):
    from data.inspect import problems_of

    assert (problems_of(book), open_splits(str(book), None, 64, 50257).meta["val_fraction"]) == ([], 0.2)


@pytest.mark.slow
def test_the_cut_falls_between_words(book, bpe_cache):
    assert decoded(book / "val.bin")[0][0].isspace()


@pytest.mark.slow
def test_a_text_that_was_cut_counts_once(tmp_path, bpe_cache, capsys):
    prepare(tmp_path / "set", "--input", put(tmp_path, "b.txt", BOOK.encode()), "--val-fraction", "0.2")
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["documents"] == "1  (1 for validation, one of them in part)"


@pytest.mark.slow
def test_fraction_of_several_documents_cuts_one_at_most(tmp_path, bpe_cache):
    texts = [f"document {number} " * 9 for number in range(40)]
    prepare(tmp_path / "set", "--input", put(tmp_path, "a.jsonl", texts), "--val-fraction", "0.5")
    train, val = decoded(tmp_path / "set" / "train.bin"), decoded(tmp_path / "set" / "val.bin")
    assert [*train[:19], train[-1] + val[0] if len(train) + len(val) > 40 else train[-1]] == texts[:20]


@pytest.mark.slow
def test_one_text_without_a_fraction_is_refused_with_the_flag(tmp_path, bpe_cache, capsys):
    assert prepare(tmp_path / "set", "--input", put(tmp_path, "a.txt", b"hello")) == 2
    assert "--val-fraction" in capsys.readouterr().err


def test_share_and_fraction_are_refused_together(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--val-share", "0.1", "--val-fraction", "0.1"])
    assert "give one of them" in capsys.readouterr().err


def test_fraction_of_characters_is_for_validation(tmp_path):
    main(
        [
            "--name",
            f"{tmp_path}/a-char",
            "--input",
            str(put(tmp_path, "a.txt", b"0123456789" * 10)),
            "--val-fraction",
            "0.3",
        ]
    )
    assert (tmp_path / "a-char" / "val.bin").stat().st_size == 2 * 30


@pytest.mark.slow
def test_small_files_share_a_shard_and_keep_their_order(tmp_path, bpe_cache, monkeypatch):
    # so that the shards can be counted
    monkeypatch.setattr("data.tokenize.remove_folder", lambda folder: None)
    for number in range(3000):
        put(tmp_path / "raw", f"{number % 7}/{number:05d}.txt", f"document {number}".encode())
    assert prepare(tmp_path / "set", "--input", tmp_path / "raw", "--val-fraction", "0.1") == 0
    found = decoded(tmp_path / "set" / "train.bin") + decoded(tmp_path / "set" / "val.bin")
    assert (len([*(tmp_path / "set" / ".tokenize").iterdir()]), "".join(found)) == (
        5,
        "".join(
            f"document {number}" for number in sorted(range(3000), key=lambda number: (number % 7, number))
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 1 << 12, 1 << 30])
def test_cut_into_groups_does_not_change_a_byte(tmp_path, bpe_cache, monkeypatch, size):
    monkeypatch.setattr("data.tokenize.GROUP_BYTES", size)
    archive = write_tar(
        tmp_path / "a.tar", [(f"{n}.jsonl", lines(f"{n} {i}" * 20 for i in range(20))) for n in range(12)]
    )
    prepare(tmp_path / "set", "--input", archive, "--val-share", "0.1")
    encoding = gpt2()
    tokens = [[*encoding.encode_ordinary(f"{n} {i}" * 20), 50256] for n in range(12) for i in range(20)]
    chosen = is_validation(0, 240, 0.1)
    expected = [token for part, is_val in zip(tokens, chosen, strict=True) if not is_val for token in part]
    assert np.fromfile(tmp_path / "set" / "train.bin", dtype="<u2").tolist() == expected
