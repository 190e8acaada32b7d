"""Damaged and hostile checkpoints: each is noticed, and does nothing."""

import io
import random
import zipfile
from pathlib import Path

import pytest
import torch

from errors import UserError
from optim.checkpoint import load_checkpoint, newest_valid
from tests.helpers import same, saved, small_state


def loads_as(path, expected):
    """Whether a damaged file is either refused as such, or holds what it held."""
    try:
        return same(load_checkpoint(path), expected)
    except UserError:
        return True


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999])
def test_truncated_file_is_refused(tmp_path, share):
    path = saved(tmp_path / "ckpt.pt", {"model": {"a": torch.randn(100, 100)}})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(UserError, match=r"ckpt\.pt is not a valid checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("missing", [1, 2, 22, 100])
def test_file_without_its_last_bytes_is_refused(tmp_path, missing):
    path = saved(tmp_path / "ckpt.pt")
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(path)


def test_block_of_zeros_in_the_tensors_is_noticed(tmp_path):
    path = saved(tmp_path / "ckpt.pt", {"model": {"a": torch.randn(100, 100)}})
    raw = path.read_bytes()
    path.write_bytes(raw[:20000] + bytes(4096) + raw[24096:])
    with pytest.raises(UserError, match=r"ckpt\.pt is not a valid checkpoint"):
        load_checkpoint(path)


def test_no_flipped_bit_changes_what_is_loaded(tmp_path):
    state = {
        **small_state(),
        "model": {f"layer.{number}.weight": torch.randn(40, 40) for number in range(12)},
    }
    path = saved(tmp_path / "ckpt.pt", state)
    raw, places, wrong = path.read_bytes(), random.Random(5), []
    for _ in range(50):
        place = places.randrange(8 * len(raw))
        path.write_bytes(flipped(raw, place))
        if not loads_as(path, state):
            wrong.append(place)
    assert wrong == []


def flipped(raw, bit):
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


def bits_of_entry(raw, record):
    """Bits of a record's entry in the zip directory at the end of a checkpoint, up to the record's name."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        name = next(info.filename for info in archive.infolist() if info.filename.endswith(record)).encode()
    return range(8 * (raw.rindex(name) - 46), 8 * raw.rindex(name))


@pytest.mark.slow
@pytest.mark.parametrize("record", ["/data.pkl", "/data/0"])
def test_no_flipped_bit_of_a_directory_entry_changes_what_is_loaded(tmp_path, record):
    path, wrong = saved(tmp_path / "ckpt.pt"), []
    raw = path.read_bytes()
    for bit in bits_of_entry(raw, record):
        path.write_bytes(flipped(raw, bit))
        if not loads_as(path, small_state()):
            wrong.append(bit)
    assert wrong == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, I am no checkpoint\n" * 100,
        bytes(1000),
        b"PK\x03\x04" + bytes(500),
        b"PK\x05\x06" + bytes(18),
    ],
    ids=["empty", "text", "zeros", "start of a zip", "empty zip"],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(tmp_path / "ckpt.pt")


@pytest.mark.parametrize(
    "records",
    [
        {"readme.txt": b"hello"},
        {"archive/data.pkl": b"", "archive/version": b"3\n"},
        {"archive/data.pkl": b"\x80\x02.", "archive/version": b"3\n"},
        {"archive/data.pkl": b"\x80\x02}q\x00.", "archive/version": b"3\n"},
        {"archive/data.pkl": b"\x80\x02K\x05.", "archive/version": b"3\n"},
    ],
    ids=["other zip", "empty pickle", "nothing pickled", "empty dict", "a number"],
)
def test_zip_without_a_model_is_refused(tmp_path, records):
    with zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(tmp_path / "ckpt.pt")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(tmp_path / "ckpt.pt")


def test_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a valid checkpoint"):
        load_checkpoint(tmp_path)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["model", "args"])
def test_hostile_checkpoint_is_refused(tmp_path, where, zipped):
    torch.save(
        {**small_state(), where: {"x": Hostile(tmp_path / "trace")}},
        tmp_path / "ckpt.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["model", "args"])
def test_hostile_checkpoint_does_not_execute(tmp_path, where, zipped):
    torch.save(
        {**small_state(), where: {"x": Hostile(tmp_path / "trace")}},
        tmp_path / "ckpt.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "ckpt.pt")
    assert not (tmp_path / "trace").exists()


def test_hostile_example_would_execute_without_protection(tmp_path):
    torch.save({"model": Hostile(tmp_path / "trace")}, tmp_path / "ckpt.pt")
    torch.load(tmp_path / "ckpt.pt", weights_only=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.slow
@pytest.mark.parametrize("record", ["/data.pkl", "/data/0"])
def test_checkpoint_that_is_taken_can_be_loaded(tmp_path, record):
    saved(tmp_path / "ckpt_1.pt", small_state(1))
    raw, wrong = saved(tmp_path / "ckpt_2.pt", small_state(2)).read_bytes(), []
    for bit in bits_of_entry(raw, record):
        (tmp_path / "ckpt_2.pt").write_bytes(flipped(raw, bit))
        try:
            load_checkpoint(newest_valid(tmp_path)[0])
        except Exception as error:
            wrong.append((bit, str(error)[-80:]))
    assert wrong == []
