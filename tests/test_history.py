"""Extensions, rollbacks and what they leave: files are named by what they hold, and nothing is lost.

On real runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optim.checkpoint import prune, save_checkpoint
from optim.selftest import differing, leaves
from tests.programs import STOPPED, command, final_state, folder, metrics, run, start, status, train

pytestmark = pytest.mark.slow

SMALL = {
    "model": "lncot",
    "n_repeat": 2,
    "n_embd": 16,
    "n_head": 2,
    "n_layer": 3,
    "sequence_length": 16,
    "batch_size": 2,
    "acc_steps": 2,
    "eval_freq": 0,
    "log_freq": 5,
    "save_checkpoint_freq": 10,
    "iterations": 40,
    "dropout": 0.0,
}


def small(results: Path, **changes: Any) -> Any:
    return train(results, **{**SMALL, **changes})


def disturbed(results: Path, step: int, number: signal.Signals, **changes: Any) -> int:
    """Train until this very run has a step or more behind it, then send a signal; the exit code."""
    process = start(command(results, **{**SMALL, "log_freq": 1, "iterations": 100_000, **changes}))
    assert process.stdout is not None
    for line in process.stdout:
        told = re.match(r"step (\d+)/", line)
        if told and int(told[1]) >= step:
            process.send_signal(number)
            break
    process.communicate(timeout=120)
    return process.returncode


def stopped_after(results: Path, step: int, **changes: Any) -> int:
    """Train until a step is done, then stop cleanly; the step at which that was."""
    assert disturbed(results, step, signal.SIGTERM, **changes) == STOPPED
    return status(results)["itr"]


def killed_after(results: Path, step: int, **changes: Any) -> None:
    assert disturbed(results, step, signal.SIGKILL, **changes) == -signal.SIGKILL


def steps_in(results: Path) -> dict[str, int]:
    """The step that each checkpoint holds, by file name; files that hold none are left out."""
    found = {}
    for path in folder(results).glob("*.pt*"):
        try:
            found[path.name] = torch.load(path, weights_only=True)["itr"]
        except Exception:  # damaged on purpose
            continue
    return found


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for place in (len(raw) // 2, len(raw) // 2 + 1):
        raw[place] ^= 255
    path.write_bytes(raw)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("finished")
    assert small(results).returncode == 0
    return results


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """40 steps, with ckpt_20.pt, ckpt_30.pt and ckpt.pt."""
    return shutil.copytree(finished_once, tmp_path / "finished")


def names_lie(results: Path) -> list[str]:
    """Numbered checkpoints that hold another step than their name says."""
    return [
        name
        for name, step in steps_in(results).items()
        if name.endswith(".pt") and name not in ("ckpt.pt", f"ckpt_{step}.pt")
    ]


# extensions


def test_an_extension_past_a_damaged_final_checkpoint_keeps_the_one_it_starts_from(finished: Path) -> None:
    damage(folder(finished) / "ckpt.pt")
    (folder(finished) / "stop").touch()
    outcome = small(finished, iterations=60, extend="continue")
    assert outcome.returncode == STOPPED and "resumed from" in outcome.stdout, outcome.stderr
    assert steps_in(finished)["ckpt_30.pt"] == 30
    (folder(finished) / "stop").unlink()
    assert small(finished, iterations=60, extend="continue").returncode == 0


def test_a_damaged_final_checkpoint_that_was_passed_over_is_not_overwritten(finished: Path) -> None:
    damage(folder(finished) / "ckpt.pt")
    raw = (folder(finished) / "ckpt.pt").read_bytes()
    assert small(finished, iterations=60, extend="continue").returncode == 0
    assert (folder(finished) / "ckpt.pt.damaged").read_bytes() == raw


def test_an_extension_from_an_older_checkpoint_gives_the_final_files_their_own_number(finished: Path) -> None:
    assert small(finished, iterations=60, extend="restart", use_pretrained="ckpt_20.pt").returncode == 0
    assert names_lie(finished) == []
    assert 40 in steps_in(finished).values()
    summaries = {path.name: json.loads(path.read_text())["itr"] for path in folder(finished).glob("summary*")}
    assert summaries == {"summary.json": 60, "summary_40.json.abandoned": 40}


def test_an_extension_from_an_older_checkpoint_leaves_it_as_it_was(finished: Path) -> None:
    before = (folder(finished) / "ckpt_20.pt").read_bytes()
    assert (
        small(
            finished, iterations=60, extend="continue", use_pretrained="ckpt_20.pt", keep_steps=[20]
        ).returncode
        == 0
    )
    assert (folder(finished) / "ckpt_20.pt").read_bytes() == before and steps_in(finished)[
        "ckpt_40.pt.abandoned"
    ] == 40


def test_a_rejoined_run_that_was_killed_ends_with_the_same_bits(
    finished: Path, finished_once: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"iterations": 80, "extend": "rejoin", "log_freq": 1}
    killed_after(finished, 56, **changes)
    assert small(finished, **changes).returncode == 0
    direct = shutil.copytree(finished_once, tmp_path / "direct")
    assert small(direct, **changes).returncode == 0
    assert differing(final_state(finished), final_state(direct)) == [] and metrics(finished) == metrics(
        direct
    )


def test_the_legs_of_a_rejoined_run_are_in_its_summary(finished: Path) -> None:
    assert small(finished, iterations=60, extend="rejoin").returncode == 0
    legs = json.loads((folder(finished) / "summary.json").read_text())["schedule"]["legs"]
    assert [(leg["begin"], leg["end"], leg.get("origin")) for leg in legs] == [(0, 40, None), (40, 60, 0)]


def test_an_extension_from_an_older_checkpoint_goes_on_from_its_own_saves(finished: Path) -> None:
    changes = {"extend": "restart", "use_pretrained": "ckpt_20.pt"}
    first = stopped_after(finished, 23, **changes)
    second = stopped_after(finished, first + 2, **changes)
    rows = [json.loads(line) for line in (folder(finished) / "segments.jsonl").read_text().splitlines()]
    assert [row["start_step"] for row in rows] == [0, 20, first] and second > first


def test_an_extension_that_was_given_up_leaves_no_rows(
    finished: Path, finished_once: Path, tmp_path: Path
) -> None:
    killed_after(finished, 50, extend="restart", save_checkpoint_freq=None, log_freq=5)
    assert small(finished, iterations=60, extend="continue").returncode == 0
    direct = shutil.copytree(finished_once, tmp_path / "direct")
    assert small(direct, iterations=60, extend="continue").returncode == 0
    assert metrics(finished) == metrics(direct)


def test_rows_of_an_extension_that_was_given_up_are_set_aside(finished: Path) -> None:
    killed_after(finished, 50, extend="restart", save_checkpoint_freq=None, log_freq=5)
    assert small(finished, iterations=60, extend="continue").returncode == 0
    aside = [
        json.loads(line) for line in (folder(finished) / "metrics.jsonl.abandoned").read_text().splitlines()
    ]
    assert {45, 50} <= {row["step"] for row in aside} and min(row["step"] for row in aside) > 40


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


def test_a_finished_training_is_not_rolled_back(finished: Path) -> None:
    outcome = small(finished, use_pretrained="ckpt_20.pt")
    assert outcome.returncode == 0 and "finished already" in outcome.stdout
    assert sorted(steps_in(finished)) == ["ckpt.pt", "ckpt_20.pt", "ckpt_30.pt"]


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


def test_a_summary_tells_the_legs_of_the_schedule_whatever_the_last_command_said(finished: Path) -> None:
    assert disturbed(finished, 45, signal.SIGTERM, iterations=60, extend="continue") == STOPPED
    assert small(finished, iterations=60).returncode == 0
    summary = json.loads((folder(finished) / "summary.json").read_text())
    assert [(leg["begin"], leg["end"]) for leg in summary["schedule"]["legs"]] == [(0, 40), (40, 60)]


def test_a_summary_tells_worlds_and_revisions_of_the_segments(finished: Path) -> None:
    summary = json.loads((folder(finished) / "summary.json").read_text())
    assert [(row["start_step"], row["end_step"], row["world_size"]) for row in summary["segments"]] == [
        (0, 40, 1)
    ]
    assert "revision" in summary["segments"][0]


def test_a_summary_tells_what_evaluations_read(finished: Path) -> None:
    evaluation = json.loads((folder(finished) / "summary.json").read_text())["evaluation"]
    assert (evaluation["windows"], evaluation["batch_size"]) == (8, 2) and evaluation["final_windows"] > 8


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


def test_an_extension_from_another_experiments_checkpoint_leaves_that_experiment_as_it_is(
    finished: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in folder(finished).glob("*.pt")}
    foreign = folder(finished) / "ckpt.pt"
    assert small(tmp_path / "other", iterations=60, extend="continue", use_pretrained=foreign).returncode == 0
    assert {path.name: path.read_bytes() for path in folder(finished).glob("*.pt")} == before


def test_a_damaged_file_of_its_number_makes_way_for_the_good_final_checkpoint(finished: Path) -> None:
    shutil.copy(folder(finished) / "ckpt.pt", folder(finished) / "ckpt_40.pt")
    damage(folder(finished) / "ckpt_40.pt")
    for name in ("ckpt_20.pt", "ckpt_30.pt"):
        (folder(finished) / name).unlink()
    killed_after(finished, 42, extend="continue", save_checkpoint_freq=None)
    assert stopped_after(finished, 43, extend="continue") > 42


def test_an_extension_of_the_named_final_checkpoint_goes_on_after_a_kill(finished: Path) -> None:
    changes = {"extend": "continue", "use_pretrained": "ckpt.pt"}
    killed_after(finished, 42, **changes, save_checkpoint_freq=None)
    assert stopped_after(finished, 43, **changes) > 42


def test_a_final_checkpoint_that_was_extended_outlives_the_run_under_its_number(finished: Path) -> None:
    (folder(finished) / "summary.json").unlink()
    stopped_after(finished, 62, extend="restart", keep_checkpoints=1)
    assert steps_in(finished)["ckpt_40.pt"] == 40


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


def test_a_summary_takes_the_number_of_its_step_only_with_its_own_checkpoint(finished: Path) -> None:
    damage(folder(finished) / "ckpt.pt")
    assert small(finished, iterations=60, extend="restart", keep_checkpoints=1).returncode == 0
    assert (
        not (folder(finished) / "summary_40.json").exists()
        and (folder(finished) / "summary_40.json.abandoned").exists()
    )


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
