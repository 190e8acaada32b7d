"""Extensions of finished trainings: files are named by what they hold, and nothing is lost. On real runs."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from optim.selftest import differing
from tests.history import damage, disturbed, killed_after, small, steps_in, stopped_after
from tests.programs import STOPPED, final_state, folder, metrics

pytestmark = pytest.mark.slow


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


def test_a_finished_training_is_not_rolled_back(finished: Path) -> None:
    outcome = small(finished, use_pretrained="ckpt_20.pt")
    assert outcome.returncode == 0 and "finished already" in outcome.stdout
    assert sorted(steps_in(finished)) == ["ckpt.pt", "ckpt_20.pt", "ckpt_30.pt"]


def test_a_finished_training_has_no_checkpoint_of_a_name_that_is_not_there(finished: Path) -> None:
    outcome = small(finished, use_pretrained="ckpt_99.pt")
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("main.py: error: --use_pretrained ckpt_99.pt: no file ")


def test_a_finished_training_may_have_pruned_what_it_was_taken_back_to(finished: Path) -> None:
    path = folder(finished) / "segments.jsonl"
    path.write_text(path.read_text() + json.dumps({"start_step": 10, "end_step": 40}) + "\n")
    assert small(finished, use_pretrained="ckpt_10.pt").returncode == 0


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


def test_a_summary_takes_the_number_of_its_step_only_with_its_own_checkpoint(finished: Path) -> None:
    damage(folder(finished) / "ckpt.pt")
    assert small(finished, iterations=60, extend="restart", keep_checkpoints=1).returncode == 0
    assert (
        not (folder(finished) / "summary_40.json").exists()
        and (folder(finished) / "summary_40.json.abandoned").exists()
    )
