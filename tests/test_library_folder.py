"""A checkpoint as the training library's folder: the same state, resumed to the same bits, refused where
it is damaged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from errors import UserError
from models.export import main as export
from optim import initial, library_folder
from optim.checkpoint import load_checkpoint, save_checkpoint
from optim.library_folder import METADATA, MODEL, OPTIMIZER
from optim.opening import open_checkpoint
from optim.peek import step_in
from optim.restore import CHECKPOINT, find_checkpoint, with_checkpoint
from optim.selftest import differing, leaves
from tests.helpers import same, small_state, tiny_args, tiny_model
from tests.test_fit import Patience, Scaled, StopAt, train, without_time

FILES = (MODEL, OPTIMIZER, METADATA)
OPTIMISERS = ("adamw", "lion", "adafactor", "sgd", "muon")


def exported(checkpoint: Path, folder: Path) -> Path:
    assert export(["--format", "library", str(checkpoint), str(folder)]) == 0
    return folder


def resumed(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """Of a training with parameters of its objective's own and a hook that counts."""
    return train(folder, objective=Scaled(), hooks=[Patience(50), *changes.pop("hooks", [])], **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("written")
    resumed(place / "run", hooks=[StopAt("pause", 5)])
    return exported(place / "run", place / "library")


@pytest.fixture
def folder(tmp_path: Path, written: Path) -> Path:
    """A copy of a folder of step 5, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "library"))


@pytest.mark.parametrize("opt", OPTIMISERS)
def test_a_folder_holds_the_whole_checkpoint(tmp_path: Path, opt: str) -> None:
    resumed(tmp_path / "run", hooks=[StopAt("pause", 5)], opt=opt)
    exported(tmp_path / "run", tmp_path / "library")
    path = find_checkpoint(str(tmp_path / "library"))
    before, after = load_checkpoint(tmp_path / "run" / "ckpt_5.pt"), open_checkpoint(path)
    assert before.keys() == after.keys()
    assert differing(leaves(before), leaves(after)) == []
    assert (step_in(path), path.parent) == (5, tmp_path / "library")


def test_numbers_of_an_optimiser_stay_numbers(tmp_path: Path) -> None:
    slots = {"count": 3, "scale": 0.1, "seen": True, "exp_avg": torch.ones(2)}
    groups = [{"lr": 0.1, "betas": (0.9, float("inf")), "params": [4], "param_names": ["w"]}]
    state = {"itr": 1, "model": {}, "optimizer": {"state": {4: slots}, "param_groups": groups}}
    library_folder.write(state, tmp_path, tmp_path)
    back = open_checkpoint(tmp_path / MODEL)["optimizer"]
    assert same(back["param_groups"], groups)
    assert all(same(back["state"][4][key], value) for key, value in slots.items())


def test_a_training_goes_on_from_a_folder_as_from_the_checkpoint(tmp_path: Path, folder: Path) -> None:
    whole = resumed(tmp_path / "whole")
    rows = resumed(tmp_path / "other", use_pretrained=str(folder))
    assert without_time(rows) == [row for row in without_time(whole) if row["step"] > 5]
    states = [leaves(load_checkpoint(tmp_path / name / "ckpt.pt")) for name in ("whole", "other")]
    assert [name for name in differing(*states) if not name.startswith("/args")] == []


def test_a_folder_has_the_names_of_the_library(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*FILES}
    assert json.loads((folder / METADATA).read_text())["step"] == 5
    slots = load_file(folder / OPTIMIZER)
    assert slots["0.weight.m"].shape == slots["0.weight.v"].shape == (8, 1)
    assert (slots["step"].item(), slots["step"].dtype) == (5, torch.uint64)


def test_a_copy_of_a_folder_is_the_same_to_the_byte(tmp_path: Path, folder: Path) -> None:
    copy = exported(folder, tmp_path / "copy")
    assert [(copy / name).read_bytes() == (folder / name).read_bytes() for name in FILES] == [True] * 3


# damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.9, 0.999])
def test_a_changed_byte_is_found(tmp_path: Path, folder: Path, name: str, place: float) -> None:
    content = bytearray((folder / name).read_bytes())
    # in metadata.json the next digit, which leaves it JSON
    at = int(place * (len(content) - 1))
    while name == METADATA and place < 0.9 and not chr(content[at]).isdigit():
        at += 1
    content[at] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{folder}/{name} .*$"):
        open_checkpoint(folder / MODEL)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["missing", "short", "empty", "folder"])
def test_a_file_that_is_not_whole_is_named(folder: Path, name: str, change: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if change == "folder":
        path.mkdir()
    elif change != "missing":
        path.write_bytes(content[:100] if change == "short" else b"")
    with pytest.raises(UserError, match=rf"^{path} .*$"):
        open_checkpoint(folder / MODEL)


@pytest.mark.parametrize("name", FILES)
def test_a_program_refuses_a_damaged_folder_in_one_line(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).unlink()
    with pytest.raises(SystemExit) as stopped:
        words = ["--checkpoint", str(folder)]
        with_checkpoint("eval.py", "", {"own": (CHECKPOINT,)}, words, lambda restored, given: None)
    error = capsys.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (2, 1) and str(folder / name) in error


@pytest.mark.parametrize("step", [None, -1, "4", True, 2.5])
def test_a_step_that_is_none_is_refused(tmp_path: Path, step: Any) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / MODEL)
    (tmp_path / METADATA).write_text(json.dumps({"step": step}))
    with pytest.raises(UserError, match="is damaged: its step is"):
        open_checkpoint(tmp_path / MODEL)


# writing


def test_nothing_is_left_of_a_state_that_a_folder_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {**small_state(), "format": 1}
    state["model"]["odd"] = 3
    save_checkpoint(tmp_path / "x.pt", state)
    with pytest.raises(SystemExit):
        export(["--format", "library", str(tmp_path / "x.pt"), str(tmp_path / "out")])
    assert "cannot hold the weight odd, which is a int" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["X", "--format", "library"], "--format library writes a folder"),
        (["X", "--format", "library", "--output", "y"], "--format bytes and --output FILE go together"),
        (["X", "out", "--format", "library", "--dtype", "bfloat16"], "a checkpoint stays as it is"),
        (["X", "full", "--format", "library"], "full is not empty; give a new folder"),
        (["X", "x.pt", "--format", "library"], "x.pt is not a folder"),
        (["nowhere", "out", "--format", "library"], "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_written_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "x.pt", small_state())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(SystemExit) as stopped:
        export([word.replace("X", "x.pt") for word in words])
    assert stopped.value.code == 2 and line in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"x.pt", "full"}


# of a network of this house


def test_a_network_begins_with_the_weights_of_a_folder(tmp_path: Path) -> None:
    """Also where another program has written it: weights and a step alone."""
    args, model = tiny_args("lncot", "--depth_embedding", "linear_learned"), None
    model = tiny_model("lncot", "--depth_embedding", "linear_learned")
    save_checkpoint(tmp_path / "x.pt", {"itr": 7, "model": model.state_dict(), "args": vars(args)})
    folder = exported(tmp_path / "x.pt", tmp_path / "library")
    assert step_in(find_checkpoint(str(folder))) == 7
    for content in (None, {"step": 3, "note": "of another program"}):
        if content is not None:
            (folder / METADATA).write_text(json.dumps(content))
        other = tiny_model("lncot", "--depth_embedding", "linear_learned", seed=6)
        initial.load(other, initial.find(str(folder)))
        assert differing(leaves(model.state_dict()), leaves(other.state_dict())) == []
