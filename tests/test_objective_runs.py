"""Trainings by other objectives with main.py: killed and resumed, on two processes, and teachers that are not
what they were.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from optim.checkpoint import load_checkpoint
from optim.selftest import differing
from tests.programs import (
    command,
    final_state,
    folder,
    metrics,
    python,
    run,
    start,
    train,
    trained,
    wait_for_step,
)

pytestmark = pytest.mark.slow
SHORT = {"iterations": 16, "eval_freq": 8, "save_checkpoint_freq": 5, "log_freq": 1}
DEEP = {"model": "base", "n_layer": 4, "n_repeat": 1, "depth_embedding": None, "dropout": 0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a deeper model's training."""
    results = tmp_path_factory.mktemp("teacher")
    return folder(trained(results, **SHORT, **DEEP))


def settings(objective: str, teacher: Path) -> dict[str, Any]:
    own: dict[str, Any] = {"mtp_heads": 3, "activation_checkpointing": "block"}
    if objective == "distillation":
        own = {"teacher": teacher, "distill_temperature": 2}
    return {**SHORT, "model": "lncot", "objective": objective, **own}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> dict[str, Path]:
    """Trainings that nobody disturbed, by objective."""
    found = {}
    for objective in ("multi_token", "distillation"):
        results = tmp_path_factory.mktemp(objective)
        found[objective] = trained(results, **settings(objective, teacher))
    return found


@pytest.mark.parametrize("objective", ["multi_token", "distillation"])
def test_a_killed_training_ends_with_the_same_bits(
    objective: str, unbroken: dict[str, Path], teacher: Path, tmp_path: Path
) -> None:
    words = command(tmp_path, **settings(objective, teacher))
    process = start(words)
    wait_for_step(tmp_path, 7, process)
    process.kill()
    process.communicate(timeout=60)
    assert run(words).returncode == 0
    assert differing(final_state(unbroken[objective]), final_state(tmp_path)) == []
    assert metrics(unbroken[objective]) == metrics(tmp_path)


@pytest.mark.parametrize("objective", ["multi_token", "distillation"])
def test_two_processes_train_as_one(
    objective: str, unbroken: dict[str, Path], teacher: Path, tmp_path: Path
) -> None:
    trained(tmp_path, 2, **settings(objective, teacher))
    losses = [
        [row["loss"] for row in metrics(path) if row["kind"] == "train"]
        for path in (tmp_path, unbroken[objective])
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_checkpoint_holds_the_bare_network_and_what_is_trained_beside_it(unbroken: dict[str, Path]) -> None:
    states = {name: load_checkpoint(folder(path) / "ckpt.pt") for name, path in unbroken.items()}
    assert states["multi_token"]["model"].keys() == states["distillation"]["model"].keys()
    assert "objective" not in states["distillation"]
    heads = {name.split(".")[1] for name in states["multi_token"]["objective"]}
    assert heads == {"0", "1", "2"}


def test_a_checkpoint_names_its_teacher_by_path_and_content(unbroken: dict[str, Path], teacher: Path) -> None:
    frozen = load_checkpoint(folder(unbroken["distillation"]) / "ckpt.pt")["frozen"]["teacher"]
    assert frozen["file"] == str(teacher / "ckpt.pt") and len(frozen["sha256"]) == 64
    summary = json.loads((folder(unbroken["distillation"]) / "summary.json").read_text())
    assert summary["frozen"]["teacher"] == frozen


@pytest.fixture
def begun(unbroken: dict[str, Path], teacher: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A training that is not finished, and its teacher's folder."""
    own = shutil.copytree(teacher, tmp_path / "deep")
    results = tmp_path / "results"
    process = start(command(results, **settings("distillation", own)))
    wait_for_step(results, 6, process)
    (folder(results) / "stop").touch()
    process.communicate(timeout=60)
    (folder(results) / "stop").unlink()
    return results, own


def refusal(results: Path, of: Path, **changes: Any) -> str:
    """The line. of: the teacher."""
    outcome = train(results, **{**settings("distillation", of), **changes})
    assert outcome.returncode == 2, outcome.stdout + outcome.stderr
    lines = outcome.stderr.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in outcome.stderr, outcome.stderr
    return lines[0]


def test_a_teacher_that_is_not_what_it_was_is_refused(begun: tuple[Path, Path]) -> None:
    """Gone, damaged, or of other weights; put back, the training goes on."""
    results, teacher = begun
    file = teacher / "ckpt.pt"
    content = file.read_bytes()
    file.write_bytes(content[:-2000])
    assert "is not a valid checkpoint" in refusal(results, file)
    state = torch.load(file.with_name("ckpt_15.pt"), weights_only=True)
    torch.save(state, file)
    assert "not what the training began with" in refusal(results, teacher)
    assert "the training began with other weights" in refusal(results, file)
    file.unlink()
    for other in teacher.glob("ckpt_*.pt"):
        other.unlink()
    assert "no ckpt.pt" in refusal(results, teacher)
    file.write_bytes(content)
    assert train(results, **settings("distillation", teacher)).returncode == 0


def test_a_teacher_that_was_moved_is_known_by_its_content(begun: tuple[Path, Path]) -> None:
    results, teacher = begun
    moved = teacher.rename(teacher.with_name("elsewhere"))
    assert train(results, **settings("distillation", moved)).returncode == 0


def test_a_teacher_that_trains_on_stays_what_it_was(begun: tuple[Path, Path]) -> None:
    """Of its folder the checkpoint counts that the training began with."""
    results, teacher = begun
    state = torch.load(teacher / "ckpt.pt", weights_only=True)
    torch.save({**state, "itr": 30}, teacher / "ckpt_30.pt")
    assert train(results, **settings("distillation", teacher)).returncode == 0


def test_a_teacher_as_the_library_s_folder(unbroken: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    words = [*python(), "-m", "models.export", "--format", "library", str(teacher), str(tmp_path / "library")]
    assert run(words).returncode == 0
    trained(tmp_path / "runs", **settings("distillation", tmp_path / "library"))
    assert metrics(tmp_path / "runs") == metrics(unbroken["distillation"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 300}, "has a vocabulary of 256, --vocab_size is 300"),
        ({"sequence_length": 64}, "was trained on 48 tokens, --sequence_length is 64"),
        ({"teacher": "/nowhere/ckpt.pt"}, "--teacher /nowhere/ckpt.pt: no such file or folder"),
        ({"teacher": Path(__file__)}, "is not a valid checkpoint"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    teacher: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in refusal(tmp_path, teacher, **changes)


def test_a_teacher_of_other_tokens_is_refused(teacher: Path, tmp_path: Path) -> None:
    state = torch.load(teacher / "ckpt.pt", weights_only=True)
    mine, others = tmp_path / "mine.pt", tmp_path / "other.pt"
    torch.save({**state, "vocabulary": {"tokenizer": "bytes"}}, others)
    torch.save({**state, "vocabulary": {}}, mine)
    assert train(tmp_path / "a", **{**settings("distillation", mine), "iterations": 1}).returncode == 0
    data = shutil.copytree("tests/data/small/openwebtext2", tmp_path / "data" / "openwebtext2")
    meta = json.loads((data / "meta.json").read_text()) if (data / "meta.json").exists() else {}
    (data / "meta.json").write_text(json.dumps({**meta, "tokenizer": "characters"}))
    line = refusal(tmp_path / "b", others, data_dir=tmp_path / "data")
    assert "tokens are of the tokenizer 'bytes'" in line
