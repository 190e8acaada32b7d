"""Rollbacks to an older checkpoint: the abandoned branch is set aside, and nothing is lost. On real runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from optim.selftest import differing, leaves
from tests.history import killed_after, small, steps_in, stopped_after
from tests.programs import folder, metrics

pytestmark = pytest.mark.slow


# rollbacks


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("begun")
    stopped_after(results, 32, keep_checkpoints=0)
    return results


@pytest.fixture
def begun(begun_once: Path, tmp_path: Path) -> Path:
    """Stopped a little beyond step 30, with all checkpoints kept."""
    return shutil.copytree(begun_once, tmp_path / "begun")


ROLLBACK: dict[str, Any] = {"use_pretrained": "ckpt_10.pt", "keep_checkpoints": 2}


def test_a_rollback_sets_the_abandoned_branch_aside(begun: Path) -> None:
    before = {f"{name}.abandoned": step for name, step in steps_in(begun).items() if step > 10}
    stopped_after(begun, 13, **ROLLBACK)
    assert {name: step for name, step in steps_in(begun).items() if name.endswith(".abandoned")} == before


def test_a_damaged_checkpoint_goes_with_the_branch_that_its_name_says(begun: Path) -> None:
    (folder(begun) / "ckpt_30.pt").write_bytes(b"no checkpoint")
    stopped_after(begun, 13, **ROLLBACK)
    assert (folder(begun) / "ckpt_30.pt.abandoned").read_bytes() == b"no checkpoint"


def test_the_best_checkpoint_of_an_abandoned_branch_goes_with_it(begun: Path) -> None:
    shutil.copy(folder(begun) / "ckpt_30.pt", folder(begun) / "best.pt")
    stopped_after(begun, 13, **ROLLBACK)
    assert {name: step for name, step in steps_in(begun).items() if name.startswith("best")} == {
        "best.pt.abandoned": 30
    }


def test_a_rollback_keeps_what_it_started_from_and_what_it_wrote(begun: Path) -> None:
    step = stopped_after(begun, 13, **ROLLBACK)
    kept = {name: held for name, held in steps_in(begun).items() if name.endswith(".pt")}
    assert kept == {"ckpt_10.pt": 10, f"ckpt_{step}.pt": step}


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_command_of_a_rollback_goes_on_from_its_own_saves(begun: Path, keep: int) -> None:
    first = stopped_after(begun, 13, **{**ROLLBACK, "keep_checkpoints": keep})
    second = stopped_after(begun, first + 2, **{**ROLLBACK, "keep_checkpoints": keep})
    rows = [json.loads(line) for line in (folder(begun) / "segments.jsonl").read_text().splitlines()]
    assert [row["start_step"] for row in rows[1:]] == [10, first] and second > first


def test_a_rollback_goes_on_after_its_starting_point_has_been_pruned(begun: Path) -> None:
    changes = {**ROLLBACK, "keep_checkpoints": 1}
    step = stopped_after(begun, 13, **changes)
    step = stopped_after(begun, step + 12, **changes)
    (folder(begun) / "ckpt_10.pt").unlink(missing_ok=True)
    assert stopped_after(begun, step + 2, **changes) > step


def test_a_rollback_leaves_one_row_for_each_step_and_the_abandoned_ones_aside(begun: Path) -> None:
    old = [row["step"] for row in metrics(begun)]
    step = stopped_after(begun, 13, **ROLLBACK)
    steps = [row["step"] for row in metrics(begun) if row["kind"] == "train"]
    assert steps == list(range(1, step + 1))
    aside = [
        json.loads(line)["step"]
        for line in (folder(begun) / "metrics.jsonl.abandoned").read_text().splitlines()
    ]
    assert aside == [each for each in old if each > 10]


def test_a_rollback_that_was_killed_at_once_is_made_again(begun: Path) -> None:
    """Files had been set aside, and nothing had been saved yet."""
    killed_after(begun, 11, **ROLLBACK, save_checkpoint_freq=None)
    first = stopped_after(begun, 13, **ROLLBACK)
    second = stopped_after(begun, first + 2, **ROLLBACK)
    assert second > first > 10


@pytest.mark.essential
def test_a_rolled_back_training_computes_what_it_did_before(begun: Path) -> None:
    states = [torch.load(folder(begun) / "ckpt_20.pt", weights_only=True)]
    stopped_after(begun, 22, **{**ROLLBACK, "keep_checkpoints": 0})
    states.append(torch.load(folder(begun) / "ckpt_20.pt", weights_only=True))
    for state in states:
        del state["args"], state["rollbacks"]
    assert differing(*map(leaves, states)) == []


# another device


def test_a_precision_that_changes_with_the_device_is_told(begun: Path) -> None:
    newest = max(folder(begun).glob("ckpt_*.pt"), key=lambda path: int(path.stem.split("_")[1]))
    state = torch.load(newest, weights_only=True)
    assert state["precision"] == "float32"
    torch.save({**state, "precision": "bfloat16"}, newest)
    outcome = small(begun, iterations=100_000, max_runtime_minutes=0)
    assert "computed in bfloat16, and goes on in float32" in outcome.stdout


# other experiments, kills and repeated commands


def test_evaluations_of_an_abandoned_branch_go_with_it(begun: Path) -> None:
    for name, step in (
        ("eval_summary_ckpt_30.json", 30),
        ("eval_summary_ckpt_10.json", 10),
        ("ppl_per_mac.json", 30),
    ):
        (folder(begun) / name).write_text(json.dumps({"itr": step}))
    stopped_after(begun, 13, **ROLLBACK)
    left = {
        path.name for pattern in ("eval_summary*", "ppl_per_mac*") for path in folder(begun).glob(pattern)
    }
    assert left == {
        "eval_summary_ckpt_30.json.abandoned",
        "eval_summary_ckpt_10.json",
        "ppl_per_mac.json.abandoned",
    }


def test_a_second_way_back_to_one_step_is_told_how_it_is_asked_for(begun: Path) -> None:
    stopped_after(begun, 13, **ROLLBACK)
    outcome = small(begun, **ROLLBACK, iterations=100_000, max_runtime_minutes=0)
    assert (
        "has been taken back to step 10 before" in outcome.stdout
        and "move the newer checkpoints away" in outcome.stdout
    )


def test_the_way_back_from_a_finished_training_is_as_it_is_told(begun: Path) -> None:
    changes = {**ROLLBACK, "iterations": 40}
    for path in folder(begun).glob("*"):
        if path.name not in ("ckpt_10.pt", "metrics.jsonl"):
            path.unlink()
    first = folder(begun) / "ckpt_10.pt"
    state = torch.load(first, weights_only=True)
    state["args"]["iterations"] = 40
    state["scheduler"]["legs"][0] |= {"end": 40, "rise": 1.0}
    torch.save(state, first)
    kept = first.read_bytes()
    assert small(begun, **changes).returncode == 0
    assert "move summary.json and the newer checkpoints away" in small(begun, **changes).stdout
    for path in [folder(begun) / "summary.json", *folder(begun).glob("ckpt*.pt")]:
        path.unlink()
    first.write_bytes(kept)
    assert "at step 10" in small(begun, **changes).stdout
