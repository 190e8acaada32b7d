"""What a folder holds after stops, kills and other data: nothing is mixed, nothing is lost. On real runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optim.checkpoint import prune, save_checkpoint
from optim.selftest import differing
from tests.history import SMALL, disturbed, killed_after, small, steps_in, stopped_after
from tests.programs import STOPPED, final_state, folder, metrics, run

pytestmark = pytest.mark.slow


# evaluations that a stop cuts short


def test_a_stop_within_the_evaluation_after_the_last_step_leaves_what_an_unbroken_run_does(
    tmp_path: Path,
) -> None:
    changes = {"iterations": 10, "eval_freq": 10, "eval_batches": 0, "log_freq": 1}
    assert disturbed(tmp_path / "cut", 10, signal.SIGTERM, **changes) == STOPPED
    assert small(tmp_path / "cut", **changes).returncode == 0
    assert small(tmp_path / "straight", **changes).returncode == 0
    assert differing(final_state(tmp_path / "cut"), final_state(tmp_path / "straight")) == []


# pruning


def test_what_a_run_was_resumed_from_outlives_it(tmp_path: Path) -> None:
    first = stopped_after(tmp_path, 12, keep_checkpoints=1)
    stopped_after(tmp_path, first + 25, keep_checkpoints=1)
    assert f"ckpt_{first}.pt" in steps_in(tmp_path)


# the data


@pytest.fixture
def two_datasets(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Folders of one name with other tokens, and as many of them."""
    folders = []
    for seed in (1, 2):
        place = tmp_path / f"data{seed}" / "toy"
        place.mkdir(parents=True)
        draw = np.random.default_rng(seed)
        for split, count in (("train", 20_000), ("val", 500)):
            draw.integers(0, 64, count).astype("<u2").tofile(place / f"{split}.bin")
        folders.append(place)
    yield folders[0], folders[1]


def test_a_finished_training_is_not_taken_for_one_on_other_data(
    two_datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    assert small(results, dataset=two_datasets[0], iterations=10).returncode == 0
    outcome = small(results, dataset=two_datasets[1], iterations=10)
    assert outcome.returncode == 2 and "training data" in outcome.stderr


def test_a_training_does_not_go_on_with_other_data_of_the_same_size(
    two_datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    assert small(results, dataset=two_datasets[0], iterations=10).returncode == 0
    outcome = small(results, dataset=two_datasets[1], iterations=20, extend="continue")
    assert outcome.returncode == 2 and "training data" in outcome.stderr


def test_a_training_does_not_go_on_with_another_validation_split(
    two_datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    stopped_after(results, 5, dataset=two_datasets[0])
    os.replace(two_datasets[1] / "val.bin", two_datasets[0] / "val.bin")
    outcome = small(results, dataset=two_datasets[0], iterations=100_000)
    assert outcome.returncode == 2 and "validation data" in outcome.stderr


# evaluations during the training


def test_evaluations_stay_on_their_windows_when_the_batch_is_cut_otherwise(tmp_path: Path) -> None:
    changes = {"eval_freq": 5, "eval_batches": 3}
    stopped_after(tmp_path, 7, **changes, batch_size=4, acc_steps=1)
    stopped_after(tmp_path, 17, **changes, batch_size=1, acc_steps=4)
    assert {row["n_tokens"] for row in metrics(tmp_path) if row["kind"] == "eval"} == {
        3 * 4 * SMALL["sequence_length"]
    }


def test_evaluations_of_a_model_that_draws_do_not_depend_on_the_cut(tmp_path: Path) -> None:
    changes = {"model": "pondernet", "eval_batches": 3}
    step, losses = stopped_after(tmp_path / "first", 3, **changes, batch_size=4, acc_steps=1), []
    for name, batch, accumulated in (("same", 4, 1), ("cut", 1, 4)):
        results = shutil.copytree(tmp_path / "first", tmp_path / name)
        disturbed(
            results,
            step + 1,
            signal.SIGTERM,
            **changes,
            batch_size=batch,
            acc_steps=accumulated,
            eval_freq=step,
        )
        losses.append([row["val_loss"] for row in metrics(results) if row["kind"] == "eval"])
    assert len(losses[0]) > 0 and losses[0][0] == losses[1][0]


def test_a_model_whose_loss_depends_on_the_cut_is_not_resumed_with_another_one(tmp_path: Path) -> None:
    changes = {"model": "but_halting", "n_repeat": 3}
    stopped_after(tmp_path, 3, **changes, batch_size=4, acc_steps=1)
    outcome = small(tmp_path, **changes, batch_size=1, acc_steps=4, iterations=100_000)
    assert outcome.returncode == 2 and "--batch_size: the checkpoint has 4, this run 1" in outcome.stderr


# the record


def test_a_summary_tells_which_steps_were_skipped(tmp_path: Path) -> None:
    assert small(tmp_path, iterations=5, grad_norm_limit=1e-9, on_bad_step="skip").returncode == 0
    assert json.loads((folder(tmp_path) / "summary.json").read_text())["skipped_steps"] == [1, 2, 3, 4, 5]


def test_rows_of_a_run_that_saved_nothing_are_not_taken_for_those_of_other_settings(tmp_path: Path) -> None:
    killed_after(tmp_path, 6, save_checkpoint_freq=None, iterations=1000, lr=5e-3)
    assert small(tmp_path, iterations=10, log_freq=1, save_checkpoint_freq=None).returncode == 0
    straight = tmp_path / "straight"
    assert small(straight, iterations=10, log_freq=1, save_checkpoint_freq=None).returncode == 0
    assert metrics(tmp_path) == metrics(straight)


# other experiments, kills and repeated commands


def test_rows_of_other_settings_are_told_also_past_a_row_that_the_chain_wrote(tmp_path: Path) -> None:
    killed_after(tmp_path, 6, save_checkpoint_freq=None, iterations=1000, lr=5e-3)
    outcome = run(
        [sys.executable, "-m", "iridis.chain", str(folder(tmp_path)), "--code", "1"], SLURM_JOB_ID="77"
    )
    assert outcome.returncode == 0, outcome.stderr
    assert small(tmp_path, iterations=10, log_freq=1, save_checkpoint_freq=None).returncode == 0
    straight = tmp_path / "straight"
    assert small(straight, iterations=10, log_freq=1, save_checkpoint_freq=None).returncode == 0
    assert metrics(tmp_path) == metrics(straight)


def test_a_checkpoint_is_pruned_by_the_step_that_it_holds(tmp_path: Path) -> None:
    for name, step in (("ckpt_99.pt", 20), ("ckpt_36.pt", 36), ("ckpt_33.pt", 33)):
        save_checkpoint(tmp_path / name, {"itr": step, "model": {}})
    prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt_36.pt"]


# steps that are kept


def test_a_step_that_is_kept_has_its_checkpoint_to_the_end(tmp_path: Path) -> None:
    assert small(tmp_path, keep_steps=[13, 20], keep_checkpoints=1).returncode == 0
    assert steps_in(tmp_path) == {"ckpt_13.pt": 13, "ckpt_20.pt": 20, "ckpt_30.pt": 30, "ckpt.pt": 40}


def test_a_step_that_is_kept_outlives_the_removal_of_intermediary_checkpoints(tmp_path: Path) -> None:
    assert small(tmp_path, keep_steps=[13], remove_intermediary_checkpoints_at_end=True).returncode == 0
    assert steps_in(tmp_path) == {"ckpt_13.pt": 13, "ckpt.pt": 40}


def test_a_step_that_an_earlier_run_was_told_to_keep_stays_kept(tmp_path: Path) -> None:
    """Through two further runs: one with other steps, and one without any."""
    changes: dict[str, Any] = {"iterations": 80, "keep_checkpoints": 1}
    killed_after(tmp_path, 14, keep_steps=[10], **changes)
    killed_after(tmp_path, 24, keep_steps=[5, 33], **changes)
    assert small(tmp_path, remove_intermediary_checkpoints_at_end=True, **changes).returncode == 0
    assert steps_in(tmp_path) == {"ckpt_10.pt": 10, "ckpt_33.pt": 33, "ckpt.pt": 80}


def test_a_step_to_keep_that_has_passed_is_told(tmp_path: Path) -> None:
    killed_after(tmp_path, 14, iterations=80)
    outcome = small(tmp_path, iterations=80, keep_steps=[5])
    assert "note: --keep_steps 5: passed already, and there is no checkpoint of that step" in outcome.stdout


def test_saving_at_further_steps_changes_no_bit(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "keep_steps": [7, 13, 33],
        "eval_freq": 4,
        "dropout": 0.1,
        "model": "adm",
        "n_repeat": 3,
        "iterations": 80,
        "log_freq": 1,
    }
    killed_after(tmp_path / "kept", 14, **changes)
    assert small(tmp_path / "kept", **changes).returncode == 0
    assert small(tmp_path / "plain", **{**changes, "keep_steps": None}).returncode == 0
    assert differing(final_state(tmp_path / "kept"), final_state(tmp_path / "plain")) == []
    assert metrics(tmp_path / "kept") == metrics(tmp_path / "plain")
