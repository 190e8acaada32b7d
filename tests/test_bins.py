"""Token bins and their windows; bins of another form are refused."""

import io
import json
import re
import shlex

import numpy as np
import pytest
import torch

from data import TokenWindows, dataset_folder, open_splits
from data.bins import map_tokens, read_meta
from errors import UserError
from tests.helpers import PEER

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
        ("lib_docs", "python -m data.tokenize --name lib_docs"),
        ("wikitext", "python -m data.tokenize --name wikitext --input"),
        ("my notes", "python -m data.tokenize --name 'my notes' --input"),
    ],
)
def test_unprepared_dataset_names_the_command_that_prepares_it(tmp_path, name, command):
    with pytest.raises(UserError, match=re.escape(command)):
        open_splits(name, str(tmp_path), 8, 50304)


def test_the_command_prepares_it_where_it_is_looked_for(tmp_path):
    with pytest.raises(UserError, match=re.escape(f" --data_dir {shlex.quote(str(tmp_path))}") + "$"):
        open_splits("wikitext", str(tmp_path), 8, 50304)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ("[]", "it must hold a JSON object"),
        ("null", "it must hold a JSON object"),
        ('{"splits": {"train": null}}', "splits.train must be an object, not None"),
    ],
)
def test_meta_that_is_no_object_is_called_that(tmp_path, meta, said):
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(UserError, match=re.escape(f"meta.json cannot be read ({said})")):
        read_meta(tmp_path)


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
