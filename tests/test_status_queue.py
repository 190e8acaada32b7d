"""status.py beside SLURM: jobs that run, wait or are gone, and why a chain stopped."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import pytest

from files import write_json
from monitor import read
from optim.outcome import Kind, ended
from tests.statuses import NOW, experiment, job_of, pending, said, seen, segment, write_queue, write_squeue

pytestmark = pytest.mark.usefixtures("no_programs")


def test_without_slurm_the_queue_is_not_known(tmp_path, capsys):
    experiment(tmp_path)
    assert seen(tmp_path, capsys)["queue"] is None


def test_state_in_the_queue(tmp_path, capsys, monkeypatch):
    write_queue(tmp_path / "bin", monkeypatch)
    experiment(tmp_path / "exps")
    assert seen(tmp_path / "exps", capsys)["queue"] == "RUNNING"


@pytest.mark.parametrize("job_id", ["50_3", "53"])
def test_a_task_of_an_array_by_either_number(tmp_path, capsys, monkeypatch, job_id):
    write_queue(tmp_path / "bin", monkeypatch)
    experiment(tmp_path / "exps", job_id=job_id)
    assert seen(tmp_path / "exps", capsys)["queue"] == "PENDING"


def test_what_a_pending_job_waits_for_is_told(tmp_path, capsys, monkeypatch):
    write_queue(tmp_path / "bin", monkeypatch)
    experiment(tmp_path / "exps", job_id="53")
    assert "job 53 waits (Priority), expected start 2030-01-02T00:00:00" in said(
        [str(tmp_path / "exps")], capsys
    )


def test_a_job_that_is_not_in_the_queue(tmp_path, capsys, monkeypatch):
    write_queue(tmp_path / "bin", monkeypatch)
    experiment(tmp_path / "exps", job_id="123")
    assert seen(tmp_path / "exps", capsys)["queue"] == "no job"


def test_a_process_that_is_no_job_is_not_looked_for(tmp_path, capsys, monkeypatch):
    write_queue(tmp_path / "bin", monkeypatch)
    experiment(tmp_path / "exps", job_id="host:123")
    assert seen(tmp_path / "exps", capsys)["queue"] is None


@pytest.mark.parametrize("body", ["echo no controller >&2; exit 1", "exec sleep 30"])
def test_a_queue_that_does_not_answer_is_told(tmp_path, capsys, monkeypatch, body):
    monkeypatch.setattr(read, "SQUEUE_SECONDS", 0.3)
    write_squeue(tmp_path / "bin", body, monkeypatch)
    experiment(tmp_path / "exps")
    text = said([str(tmp_path / "exps")], capsys)
    assert "  ?  " in text
    assert text.splitlines()[-1].startswith("squeue ")


def test_a_successor_is_known_by_its_name_before_it_has_a_row(tmp_path, capsys, monkeypatch):
    place = experiment(
        tmp_path / "exps",
        state="stopped",
        reason="time limit",
        job_id="98",
        segments=[segment(0, 0, 50, chain="again")],
    )
    write_queue(tmp_path / "bin", monkeypatch, pending(job_of(place)))
    row = seen(tmp_path / "exps", capsys)
    assert (row["job_id"], row["queue"], row["queue_reason"]) == ("99", "PENDING", "Resources")
    assert "job 99 waits (Resources)" in said([str(tmp_path / "exps")], capsys)


def test_a_job_that_runs_goes_before_its_successor_which_is_told(tmp_path, capsys, monkeypatch):
    place = experiment(tmp_path / "exps", job_id="98")
    write_queue(
        tmp_path / "bin",
        monkeypatch,
        pending(job_of(place), reason="Dependency") + f"98|RUNNING|None|98|N/A|{job_of(place)}\n",
    )
    assert seen(tmp_path / "exps", capsys)["job_id"] == "98"
    assert "run: job 99 waits (Dependency)" in said([str(tmp_path / "exps")], capsys)


def test_an_evaluation_of_an_experiment_is_no_job_of_its_chain(tmp_path, capsys, monkeypatch):
    place = experiment(tmp_path / "exps", job_id="98")
    write_queue(tmp_path / "bin", monkeypatch, pending(job_of(place, "eval-lncot")))
    assert seen(tmp_path / "exps", capsys)["queue"] == "no job"


def test_a_first_job_that_waits_is_an_experiment_without_a_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "exps").mkdir()
    write_queue(
        tmp_path / "bin",
        monkeypatch,
        pending(job_of(tmp_path / "exps" / "owt2" / "base" / "new"), reason="QOSMaxJobsPerUserLimit"),
    )
    row = seen(tmp_path / "exps", capsys)
    assert (row["name"], row["state"], row["job_id"], row["queue"]) == ("new", "queued", "99", "PENDING")
    assert "new: job 99 waits (QOSMaxJobsPerUserLimit)" in said([str(tmp_path / "exps")], capsys)
    said(["--html", str(tmp_path / "page.html"), str(tmp_path / "exps")], capsys)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """That of a job which was submitted from this clone for exps/owt2/base/new."""
    monkeypatch.setattr(read, "PACKAGES", tmp_path / "iridis")
    place = tmp_path / "iridis" / "base-train" / "run_0"
    place.mkdir(parents=True)
    (place / "experiment.txt").write_text(f"{tmp_path.resolve() / 'exps' / 'owt2' / 'base' / 'new'}\n")
    return place


def test_the_run_folder_tells_the_whole_name_of_a_first_job(tmp_path, capsys, monkeypatch, run_folder):
    (tmp_path / "exps").mkdir()
    write_queue(tmp_path / "bin", monkeypatch, pending(job_of(tmp_path / "exps" / "owt2" / "base" / "new")))
    assert seen(tmp_path / "exps", capsys)["name"] == "owt2/base/new"


def test_a_first_job_of_another_folder_than_was_asked_for_is_left_out(
    tmp_path, capsys, monkeypatch, run_folder
):
    experiment(tmp_path / "others")
    write_queue(tmp_path / "bin", monkeypatch, pending(job_of(tmp_path / "exps" / "owt2" / "base" / "new")))
    assert seen(tmp_path / "others", capsys)["name"] == "run"


def test_a_promised_job_that_is_not_queued_is_told(tmp_path, capsys, monkeypatch):
    experiment(
        tmp_path / "exps",
        state="stopped",
        reason="time limit",
        segments=[segment(0, 0, 50, reason="time limit", chain="again")],
    )
    write_queue(tmp_path / "bin", monkeypatch, "")
    assert (
        said([str(tmp_path / "exps")], capsys).splitlines()[-1]
        == "run: stopped: time limit; the chain is dead: another job was promised, none is queued"
    )


def test_no_chain_is_called_dead_where_the_queue_is_not_known(tmp_path, capsys, monkeypatch):
    experiment(
        tmp_path / "exps",
        state="stopped",
        reason="time limit",
        segments=[segment(0, 0, 50, reason="time limit", chain="again")],
    )
    assert "dead" not in said([str(tmp_path / "exps")], capsys)
    write_squeue(tmp_path / "bin", "exit 1", monkeypatch)
    assert "dead" not in said([str(tmp_path / "exps")], capsys)


def test_why_a_chain_stopped_is_told(tmp_path, capsys):
    reason = "crashed at step 50 twice: killed, signal 9"
    experiment(
        tmp_path,
        state="failed",
        reason="killed, signal 9",
        segments=[segment(0, 0, 50, reason="killed, signal 9", chain=f"stop: {reason}")],
    )
    assert (
        said([str(tmp_path)], capsys).splitlines()[-1]
        == f"run: failed: killed, signal 9; the chain is dead: {reason}"
    )


def end(place: Path, kind: Kind, reason: str, seconds_after_status: float = 1) -> None:
    write_json(place / "outcome.json", ended(kind, reason).as_json())
    moment = (place / "status.json").stat().st_mtime + seconds_after_status
    os.utime(place / "outcome.json", (moment, moment))


@pytest.mark.parametrize(
    ("kind", "state"), [(Kind.CRASHED, "failed"), (Kind.STOPPED, "stopped"), (Kind.FINISHED, "finished")]
)
def test_a_run_that_ended_without_another_status_is_over(tmp_path, capsys, kind, state):
    end(experiment(tmp_path), kind, "disk full")
    row = seen(tmp_path, capsys)
    assert (row["state"], row["reason"]) == (state, "disk full")


def test_why_it_ended_without_another_status_is_told(tmp_path, capsys):
    end(
        experiment(tmp_path, segments=[segment(0, 0, 50, reason="disk full")]),
        Kind.OUT_OF_MEMORY,
        "disk full",
    )
    assert said([str(tmp_path)], capsys).splitlines()[-1] == "run: failed: disk full"


def test_the_outcome_of_an_earlier_run_does_not_end_a_running_one(tmp_path, capsys):
    end(experiment(tmp_path), Kind.CRASHED, "disk full", seconds_after_status=-1)
    row = seen(tmp_path, capsys)
    assert (row["state"], row["reason"]) == ("running", "")


def test_a_start_that_was_refused_after_a_stop_is_told(tmp_path, capsys):
    end(experiment(tmp_path, state="stopped", reason="time limit", segments=[]), Kind.REFUSED, "no such data")
    assert said([str(tmp_path)], capsys).splitlines()[-1] == "run: failed: no such data"


def test_a_folder_in_which_every_start_was_refused_has_no_failed_training(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    outcome = ended(Kind.REFUSED, "dataset 'x' is not prepared")
    write_json(tmp_path / "run" / "outcome.json", outcome.as_json())
    assert seen(tmp_path, capsys)["state"] == "refused"
    assert said([str(tmp_path)], capsys).splitlines()[-1] == "run: refused: dataset 'x' is not prepared"


def test_a_start_that_was_refused_after_the_end_leaves_it_finished(tmp_path, capsys):
    end(experiment(tmp_path, state="finished"), Kind.REFUSED, "no such data")
    assert seen(tmp_path, capsys)["state"] == "finished"


def test_a_reason_that_the_chain_shares_with_the_run_is_told_once(tmp_path, capsys):
    experiment(
        tmp_path,
        state="failed",
        reason="disk full",
        segments=[segment(0, 0, 50, reason="disk full", chain="stop: disk full")],
    )
    assert said([str(tmp_path)], capsys).splitlines()[-1] == "run: failed: disk full; the chain is dead"


def test_a_job_that_vanished_from_the_queue_leaves_a_dead_chain(tmp_path, capsys, monkeypatch):
    experiment(tmp_path / "exps", updated=NOW - 700, metrics=[], job_id="98")
    write_queue(tmp_path / "bin", monkeypatch, "")
    assert (
        said([str(tmp_path / "exps")], capsys)
        .splitlines()[-1]
        .endswith("the chain is dead: job 98 is gone, none is queued")
    )


@pytest.mark.parametrize("state", ["REQUEUE_HOLD", "SUSPENDED"])
def test_a_job_that_neither_runs_nor_waits_is_told(tmp_path, capsys, monkeypatch, state):
    experiment(tmp_path / "exps", job_id="98")
    write_queue(tmp_path / "bin", monkeypatch, f"98|{state}|launch failed|98|N/A|x\n")
    assert f"run: job 98 is {state} (launch failed)" in said([str(tmp_path / "exps")], capsys)


@pytest.mark.parametrize(
    "name", ["SQUEUE_STATES", "SQUEUE_PARTITION", "SQUEUE_NAMES", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"]
)
def test_a_profile_that_narrows_the_queue_leaves_no_chain_for_dead(tmp_path, capsys, monkeypatch, name):
    """What a user has set for squeue by hand would hide jobs from the board."""
    place = experiment(
        tmp_path / "exps",
        state="stopped",
        reason="time limit",
        segments=[segment(0, 0, 50, reason="time limit", chain="again")],
    )
    line = shlex.quote(pending(job_of(place)))
    write_squeue(tmp_path / "bin", f'[ -n "${name}" ] || printf %s {line}', monkeypatch)
    monkeypatch.setenv(name, "other")
    assert seen(tmp_path / "exps", capsys)["queue"] == "PENDING"


def test_slurm_programs_without_a_cluster_are_no_queue(tmp_path, capsys, monkeypatch):
    experiment(tmp_path / "exps")
    write_squeue(
        tmp_path / "bin",
        "echo 'squeue: fatal: Could not establish a configuration source' >&2; exit 1",
        monkeypatch,
    )
    assert seen(tmp_path / "exps", capsys)["queue"] is None


def test_a_configuration_that_is_not_there_is_told_at_once(tmp_path, capsys, monkeypatch):
    experiment(tmp_path / "exps", job_id="98")
    write_squeue(tmp_path / "bin", "exec sleep 60", monkeypatch)
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    begin = time.monotonic()
    assert "SLURM_CONF=/nowhere/slurm.conf: there is no such file" in said([str(tmp_path / "exps")], capsys)
    assert time.monotonic() - begin < 5
