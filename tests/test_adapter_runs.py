"""Trainings of adapters with main.py: killed and resumed, on two processes, and what other programs make of
their checkpoints.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.adapters import is_adapters, plain_weights
from optim.checkpoint import load_checkpoint
from optim.library_folder import read
from optim.selftest import differing
from tests.programs import command, final_state, folder, metrics, run, start, train, trained, wait_for_step

pytestmark = pytest.mark.slow
SHORT = {"iterations": 14, "eval_freq": 7, "save_checkpoint_freq": 5, "log_freq": 1, "eval_batches": 2}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training of all weights."""
    return folder(trained(tmp_path_factory.mktemp("full"), **SHORT)) / "ckpt.pt"


def settings(full: Path, **changes: Any) -> dict[str, Any]:
    return {**SHORT, "adapt": "lora:2:4", "init_from": full, "lr": 1e-2, **changes}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, full: Path) -> Path:
    """The results of a training of adapters that nobody disturbed."""
    return trained(tmp_path_factory.mktemp("adapters"), **settings(full))


@pytest.fixture(scope="module")
def checkpoint(unbroken: Path) -> Path:
    return folder(unbroken) / "ckpt.pt"


def test_what_was_given_stays(full: Path, checkpoint: Path) -> None:
    state, before = load_checkpoint(checkpoint), load_checkpoint(full)["model"]
    assert all(torch.equal(state["model"][name], value) for name, value in before.items())
    trained_names = {name for group in state["optimizer"]["param_groups"] for name in group["param_names"]}
    assert trained_names == set(filter(is_adapters, state["model"])) == state["model"].keys() - before.keys()


def test_the_loss_falls(unbroken: Path) -> None:
    first, last = [row["val_loss"] for row in metrics(unbroken) if row["kind"] == "eval"]
    assert last < first


def test_a_killed_training_ends_with_the_same_bits(unbroken: Path, full: Path, tmp_path: Path) -> None:
    words = command(tmp_path, **settings(full))
    process = start(words)
    wait_for_step(tmp_path, 7, process)
    process.kill()
    process.communicate(timeout=60)
    assert run(words).returncode == 0
    assert differing(final_state(unbroken), final_state(tmp_path)) == []
    assert metrics(unbroken) == metrics(tmp_path)


def test_two_processes_train_as_one(unbroken: Path, full: Path, tmp_path: Path) -> None:
    trained(tmp_path, 2, **settings(full))
    losses = [
        [row["loss"] for row in metrics(path) if row["kind"] == "train"] for path in (tmp_path, unbroken)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_resuming_without_adapters_is_refused(unbroken: Path, full: Path) -> None:
    outcome = train(unbroken, **settings(full, adapt=None))
    assert outcome.returncode == 2 and "--adapt: the checkpoint has lora:2:4" in outcome.stderr


def test_evaluation_of_a_checkpoint_is_that_of_its_merged_weights(checkpoint: Path, tmp_path: Path) -> None:
    export = [sys.executable, "-m", "models.export", str(checkpoint), str(tmp_path / "merged")]
    assert run([*export, "--format", "library"]).returncode == 0
    values = []
    for given in (checkpoint, tmp_path / "merged"):
        outcome = run(
            [
                sys.executable,
                "eval.py",
                "--checkpoint",
                str(given),
                "--output_dir",
                str(tmp_path / given.name),
            ]
        )
        assert outcome.returncode == 0, outcome.stderr
        (result,) = (tmp_path / given.name).glob("eval_summary*.json")
        values.append(json.loads(result.read_text())["val_perplexity"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_every_form_of_an_export_has_merged_weights(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_checkpoint(checkpoint)
    expected = plain_weights(state["model"], state["args"])
    ways = {
        "transformers": [str(tmp_path / "transformers")],
        "authors": ["--authors", str(tmp_path / "authors.pt")],
        "library": [str(tmp_path / "library"), "--format", "library"],
    }
    for way, words in ways.items():
        outcome = run([sys.executable, "-m", "models.export", str(checkpoint), *words])
        assert outcome.returncode == 0 and "adapters are merged" in outcome.stderr, (way, outcome.stderr)
    transformers = load_file(tmp_path / "transformers" / "model.safetensors")
    forms = [
        {name.removeprefix("model."): value for name, value in transformers.items()},
        load_checkpoint(tmp_path / "authors.pt")["model"],
        read(tmp_path / "library")["model"],
    ]
    for form in forms:
        assert not any(map(is_adapters, form))
        assert all(torch.equal(form[name], expected[name]) for name in form.keys() & expected.keys())
        assert "transformer.h_mid.0.mlp.c_fc.weight" in form
    assert json.loads((tmp_path / "transformers" / "config.json").read_text())["adapt"] is None
