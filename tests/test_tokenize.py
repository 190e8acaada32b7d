"""From raw files to bins: every kind of input is read whole, and both splits hold what they should."""

import gzip
import random

import numpy as np
import pytest

from data import open_splits
from data.bins import is_prepared
from data.bpe import gpt2
from data.built_in import stdlib_documents
from data.setup import ensure_prepared
from data.split import is_validation
from data.tokenize import main
from tests.command_lines import code_of
from tests.corpora import (
    BINS,
    DOCUMENTS,
    all_documents,
    as_jsonl,
    compress,
    decoded,
    hashes,
    lines,
    names,
    prepare,
    split_documents,
    write_tar,
)

pytestmark = pytest.mark.slow  # each starts worker processes


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
    assert table == [
        "documents",
        "tokens",
        "bytes per token",
        "left out",
        "tokenizer",
        "seconds",
        "peak memory",
    ]


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


@pytest.mark.parametrize("count", [1, 3])
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


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory, ranks_folder):
    """The folder of datasets in which stdlib was asked for."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder))
        ensure_prepared(["stdlib"], str(folder))
    return folder


def test_stdlib_is_prepared_when_first_asked_for(stdlib):
    assert open_splits("stdlib", str(stdlib), 256, 50257).train.n_windows > 1000


def test_prepared_stdlib_decodes_to_its_documents(stdlib, bpe_cache):
    texts = [text for _, text in stdlib_documents()]
    chosen = is_validation(0, len(texts), 0.01)
    assert decoded(stdlib / "stdlib" / "val.bin") == [
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
    ],
    ids=" ".join,
)
def test_bad_flag_is_named(capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert flags[0] in capsys.readouterr().err.splitlines()[-1]


def test_missing_download_names_the_command_that_fetches_it(tmp_path, capsys):
    assert (
        code_of(main, ["--data-dir", str(tmp_path)]),
        "bash iridis/download-dataset/job.sh --full" in capsys.readouterr().err,
    ) == (2, True)


def test_folder_that_cannot_be_written_is_named(corpus, capsys):
    assert (
        prepare("/proc/nowhere", corpus[0]),
        "cannot prepare /proc/nowhere" in capsys.readouterr().err,
    ) == (2, True)
