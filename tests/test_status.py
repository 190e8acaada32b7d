"""status.py: the table, JSON and page of real trainings and of folders that are damaged, strange or not
there.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import status
from files import write_json
from monitor import draw, page, read
from optim.outcome import Kind, ended
from tests import programs
from tests.programs import ROOT, command, folder, train

NOW = time.time()
QUEUE = "4711|RUNNING|None|4711|2030-01-01T00:00:00|a|b\n50_3|PENDING|Priority|53|2030-01-02T00:00:00|job\n"


def metric(step: int, kind: str = "train", **more: Any) -> dict[str, Any]:
    clock = {"unix": NOW - 60, "tokens_per_second": 5000.0}
    values = (
        {"loss": 2.5, "lr": 1e-3, "grad_norm": 0.5} if kind == "train" else {"val_loss": 3.0, "val_pp": 20.25}
    )
    return {"kind": kind, "step": step, **values, "time": clock, **more}


def segment(number: int, start: int, end: int, seconds: float = 3600.0, **more: Any) -> dict[str, Any]:
    return {
        "segment": number,
        "job_id": "4711",
        "start_step": start,
        "end_step": end,
        "reason": "SIGUSR1",
        "seconds": seconds,
        "started": NOW - 7200,
        **more,
    }


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def experiment(
    base: Path,
    name: str = "run",
    *,
    segments: list[dict[str, Any]] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """A hand-written experiment: by default one that runs, is half done, and was updated a minute ago."""
    place = base / name
    place.mkdir(parents=True, exist_ok=True)
    state = {
        "state": "running",
        "itr": 50,
        "iterations": 100,
        "reason": "",
        "updated": NOW - 60,
        "checkpoint": 50,
        "segments": 1,
        **changes,
    }
    (place / "status.json").write_text(json.dumps(state))
    (place / "segments.jsonl").write_text(lines([segment(0, 0, 50)] if segments is None else segments))
    (place / "metrics.jsonl").write_text(
        lines([metric(40, "eval"), metric(50)] if metrics is None else metrics)
    )
    (place / "ckpt_50.pt").write_bytes(b"x" * 5000)
    return place


@pytest.fixture(autouse=True)
def no_slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: a test that wants a queue writes one."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_squeue(place: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(exist_ok=True)
    (place / "squeue").write_text(f"#!/bin/sh\n{body}\n")
    (place / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")


def write_queue(place: Path, monkeypatch: pytest.MonkeyPatch, text: str = QUEUE) -> None:
    write_squeue(place, f"cat <<'END'\n{text}END", monkeypatch)


def seen(base: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What --json says of the only experiment."""
    assert status.main(["--json", str(base)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return row


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert status.main(words) == 0
    return capsys.readouterr().out


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which bad input ends."""
    with pytest.raises(SystemExit) as stopped:
        status.main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def start(*words: str, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(ROOT / "status.py"), *words], **more)


# what a row says


def test_state_of_a_run_that_was_updated_a_minute_ago(tmp_path, capsys):
    experiment(tmp_path)
    assert seen(tmp_path, capsys)["state"] == "running"


def test_a_run_that_wrote_nothing_for_ten_minutes_is_silent(tmp_path, capsys):
    experiment(tmp_path, updated=NOW - 700, metrics=[])
    assert seen(tmp_path, capsys)["state"] == "silent"


def test_metrics_count_as_an_update(tmp_path, capsys):
    experiment(tmp_path, updated=NOW - 700)
    assert seen(tmp_path, capsys)["state"] == "running"


def test_a_lock_that_is_renewed_counts_as_an_update(tmp_path, capsys):
    (experiment(tmp_path, updated=NOW - 700, metrics=[]) / "lock").write_text('{"job": "host:1"}\n')
    assert seen(tmp_path, capsys)["state"] == "running"


def test_a_lock_that_was_given_up_is_no_update(tmp_path, capsys):
    (experiment(tmp_path, updated=NOW - 700, metrics=[]) / "lock").touch()
    assert seen(tmp_path, capsys)["state"] == "silent"


def test_a_job_that_the_queue_shows_as_running_is_not_silent(tmp_path, capsys, monkeypatch):
    write_queue(tmp_path / "bin", monkeypatch)
    experiment(tmp_path / "exps", updated=NOW - 700, metrics=[])
    assert seen(tmp_path / "exps", capsys)["state"] == "running"


def test_steps_per_hour_leave_out_segments_that_did_not_advance(tmp_path, capsys):
    rows = [segment(0, 0, 30, 1800), segment(1, 30, 30, 9999), segment(2, 30, 50, 5400)]
    experiment(tmp_path, state="stopped", segments=rows)
    assert seen(tmp_path, capsys)["steps_per_hour"] == pytest.approx(25)


def test_a_running_segment_counts_up_to_where_it_is(tmp_path, capsys):
    experiment(tmp_path, segments=[segment(0, 0, 20, 3600, reached=50)])
    assert seen(tmp_path, capsys)["steps_per_hour"] == pytest.approx(50)


def test_steps_that_a_kill_lost_do_not_count(tmp_path, capsys):
    experiment(tmp_path, state="failed", segments=[segment(0, 0, 20, 3600, reached=50)])
    assert seen(tmp_path, capsys)["steps_per_hour"] == pytest.approx(20)


def test_time_left_is_at_that_rate(tmp_path, capsys):
    experiment(tmp_path)
    assert seen(tmp_path, capsys)["eta_seconds"] == pytest.approx(3600)


def test_a_finished_run_has_no_time_left(tmp_path, capsys):
    experiment(tmp_path, state="finished", itr=100)
    assert seen(tmp_path, capsys)["eta_seconds"] is None


def test_last_loss_and_perplexity_are_those_of_the_newest_rows(tmp_path, capsys):
    experiment(
        tmp_path,
        metrics=[
            metric(40, "eval", val_pp=30.0),
            metric(40),
            metric(50, loss=1.5),
            metric(50, "final", val_pp=21.0),
        ],
    )
    row = seen(tmp_path, capsys)
    assert (row["loss"], row["val_perplexity"]) == (1.5, 21.0)


def test_an_evaluation_far_from_the_end_of_the_metrics_is_found(tmp_path, capsys):
    experiment(tmp_path, metrics=[metric(1, "eval"), *map(metric, range(2, 3000))])
    assert seen(tmp_path, capsys)["val_perplexity"] == 20.25


def test_age_of_the_newest_checkpoint(tmp_path, capsys):
    place = experiment(tmp_path)
    written = time.time() - 500
    os.utime(place / "ckpt_50.pt", (written, written))
    assert seen(tmp_path, capsys)["checkpoint_age_seconds"] == pytest.approx(500, abs=60)


def test_disk_is_the_sum_of_all_files(tmp_path, capsys):
    place = experiment(tmp_path)
    (place / "wandb").mkdir()
    (place / "wandb" / "log").write_bytes(b"x" * 7000)
    assert seen(tmp_path, capsys)["disk_bytes"] == sum(
        path.stat().st_size for path in place.rglob("*") if path.is_file()
    )


def test_job_id_in_status_goes_before_that_of_the_segment(tmp_path, capsys):
    experiment(tmp_path, job_id="99")
    assert seen(tmp_path, capsys)["job_id"] == "99"


def test_a_summary_alone_is_a_finished_run(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(
        json.dumps({"args": {"iterations": 60}, "itr": 60, "final_val_pp": 9.5})
    )
    row = seen(tmp_path, capsys)
    assert (row["state"], row["percent"], row["val_perplexity"]) == ("finished", 100, 9.5)


def test_a_checkpoint_alone_is_an_experiment(tmp_path, capsys):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "ckpt_7.pt").touch()
    assert seen(tmp_path, capsys)["name"] == "deep/er"


def test_a_folder_that_is_itself_an_experiment_has_its_own_name(tmp_path, capsys):
    assert seen(experiment(tmp_path), capsys)["name"] == "run"


def test_an_experiment_that_is_named_twice_is_shown_once(tmp_path, capsys):
    place = experiment(tmp_path)
    assert status.main(["--json", str(tmp_path), str(place)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_names_that_are_alike_tell_their_base(tmp_path, capsys):
    experiment(tmp_path / "a")
    experiment(tmp_path / "b")
    assert str(tmp_path / "a" / "run") in said([str(tmp_path / "a"), str(tmp_path / "b")], capsys)


# the queue


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


def job_of(place: Path, prefix: str = "train") -> str:
    """The name that iridis/lib.sh gives a job that works on this folder."""
    script = (
        f"source iridis/lib.sh; NAME_PREFIX={prefix}; name_job {shlex.quote(str(place.resolve()))}; printf %s"
        ' "$JOB_NAME"'
    )
    return subprocess.run(
        ["/bin/bash", "-c", script, "iridis/lib.sh"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def pending(name: str, number: str = "99", reason: str = "Resources") -> str:
    return f"{number}|PENDING|{reason}|{number}|N/A|{name}\n"


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


# the table


def on_terminal(
    base: Path, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What a terminal of so many columns shows."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    return said([str(base)], capsys).splitlines()


LONG_JOB = "login-node-04.cluster:1234567"


def test_eighty_columns_hold_name_state_and_job(tmp_path, capsys, monkeypatch):
    experiment(
        tmp_path,
        "owt2/lncot/" + "x" * 60,
        itr=39000,
        iterations=40000,
        job_id=LONG_JOB,
        metrics=[metric(9, "eval", val_pp=50257.25)],
    )
    lines = on_terminal(tmp_path, 80, capsys, monkeypatch)
    assert max(map(len, lines)) <= 80
    assert "running" in lines[1] and LONG_JOB in lines[1]


def test_a_wide_terminal_has_all_columns(tmp_path, capsys, monkeypatch):
    experiment(tmp_path)
    assert on_terminal(tmp_path, 150, capsys, monkeypatch)[0].split()[-1] == "disk"


def test_an_unreadable_cell_fits_eighty_columns(tmp_path, capsys, monkeypatch):
    (experiment(tmp_path, "y" * 60) / "status.json").write_text("{")
    lines = on_terminal(tmp_path, 80, capsys, monkeypatch)
    assert "unreadable: status.json" in lines[1] and len(lines[1]) <= 80


def test_a_terminal_shows_models_by_their_short_names(tmp_path, capsys, monkeypatch):
    name = "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
    experiment(tmp_path, f"owt2/{name}/a")
    assert on_terminal(tmp_path, 100, capsys, monkeypatch)[1].startswith("owt2/adm/a ")


def test_what_lives_stands_first(tmp_path, capsys, monkeypatch):
    for name, state in (("a", "finished"), ("b", "running"), ("c", "stopped"), ("d", "failed")):
        experiment(tmp_path / "exps", name, state=state, job_id=name)
    write_queue(tmp_path / "bin", monkeypatch, pending(job_of(tmp_path / "exps" / "c")))
    names = [line[0] for line in said([str(tmp_path / "exps")], capsys).splitlines()[1:5]]
    assert names == ["b", "c", "a", "d"]


def test_columns_fit_120_where_names_are_short(tmp_path, capsys):
    experiment(
        tmp_path,
        "owt2/lncot/run_1",
        itr=39000,
        iterations=40000,
        job_id="4711234",
        metrics=[metric(9, "eval", val_pp=50257.25), metric(9)],
    )
    assert max(map(len, said([str(tmp_path)], capsys).splitlines())) <= 120


def test_a_pipe_gets_the_whole_name(tmp_path, capsys):
    experiment(tmp_path, "n" * 200)
    assert "n" * 200 in said([str(tmp_path)], capsys)


@given(st.text(min_size=1, max_size=300), st.integers(page.NARROWEST_NAME, 300))
def test_a_shortened_name_has_the_width_and_both_ends(name, width):
    short = page.shortened(name, width)
    assert len(short) <= width
    assert (short[0], short[-1]) == (name[0], name[-1])


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40s"), (720, "12m"), (18720, "5h 12m"), (183600, "2d 03h"), (None, "-")]
)
def test_durations_are_for_people(seconds, text):
    assert page.duration(seconds) == text


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_why_a_run_ended_stands_below_the_table(tmp_path, capsys, state):
    experiment(tmp_path, state=state, reason="disk\nfull", segments=[segment(0, 0, 50, reason="disk full")])
    assert said([str(tmp_path)], capsys).splitlines()[-1] == f"run: {state}: disk full"


def test_another_reason_of_the_last_segment_is_told_too(tmp_path, capsys):
    experiment(tmp_path, state="stopped", reason="stop file")
    assert said([str(tmp_path)], capsys).splitlines()[-1] == "run: stopped: stop file; last segment: SIGUSR1"


def test_text_from_files_does_nothing_to_the_terminal(tmp_path, capsys):
    experiment(tmp_path, "a\x1b[2Jb", state="failed", reason="\x1b]0;x\x07")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said([str(tmp_path)], capsys))


# damage


def test_a_damaged_status_is_one_cell(tmp_path, capsys):
    (experiment(tmp_path) / "status.json").write_text('{"state": "run')
    assert "unreadable: status.json" in said([str(tmp_path)], capsys).splitlines()[1]


def test_the_other_columns_of_a_damaged_status_stay(tmp_path, capsys):
    (experiment(tmp_path) / "status.json").write_text("[]")
    assert seen(tmp_path, capsys)["val_perplexity"] == 20.25


@pytest.mark.parametrize("name", ["segments.jsonl", "metrics.jsonl"])
def test_a_torn_last_line_is_no_problem(tmp_path, capsys, name):
    with open(experiment(tmp_path) / name, "a") as file:
        file.write('{"kind": "train", "st')
    row = seen(tmp_path, capsys)
    assert (row["problems"], row["loss"], row["segments"]) == ([], 2.5, 1)


def test_a_damaged_line_is_told_and_passed_over(tmp_path, capsys):
    place = experiment(tmp_path)
    (place / "segments.jsonl").write_text("{]\n" + lines([segment(0, 0, 50)]))
    row = seen(tmp_path, capsys)
    assert (row["problems"], row["segments"]) == (["segments.jsonl: 1 of 2 lines are no JSON objects"], 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
STATUS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("state", "itr", "iterations", "reason", "updated", "segments", "loss", "job_id"), JSON
    ),
)
SEGMENT = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("segment", "job_id", "start_step", "end_step", "reason", "seconds", "started", "reached", "restart"),
        JSON,
    ),
)
METRIC = st.fixed_dictionaries(
    {"kind": st.sampled_from(["train", "eval", "final"]) | JSON},
    optional=dict.fromkeys(
        ("step", "loss", "val_pp", "val_loss", "lr", "grad_norm", "time", "extension"), JSON
    ),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(STATUS, SEGMENT, METRIC)
def test_any_values_can_be_shown(tmp_path, capsys, state, one_segment, one_metric):
    place = experiment(tmp_path, segments=[one_segment], metrics=[one_metric])
    (place / "status.json").write_text(json.dumps(state))
    said([str(tmp_path)], capsys)
    json.loads(said(["--json", str(tmp_path)], capsys), parse_constant=pytest.fail)
    page._segments(
        page.Chapter(
            read.progress_of(place, "run", read.Queue(None), NOW),
            draw.drawing([one_metric], []),
            [one_segment],
        )
    )


def test_a_folder_that_vanishes_is_left_out(tmp_path, capsys, monkeypatch):
    experiment(tmp_path, "stays")
    goes = experiment(tmp_path, "goes")
    write_squeue(tmp_path / "bin", "true", monkeypatch)
    found = read.find([tmp_path])
    shutil.rmtree(goes)
    monkeypatch.setattr(read, "find", lambda bases: found)
    assert seen(tmp_path, capsys)["name"] == "stays"


def run_without_rights(base: Path) -> subprocess.CompletedProcess[str]:
    """Root may read everything, so it becomes somebody who owns nothing once the program is loaded."""
    code = "import os, sys, status; os.geteuid() or os.seteuid(65534); sys.exit(status.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, str(base)], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cell"), [("status.json", "unreadable: status.json"), (".", "unreadable: folder")]
)
def test_what_may_not_be_read_is_one_cell(name, cell):
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        closed = experiment(Path(base)) / name
        closed.chmod(0)
        outcome = run_without_rights(Path(base))
        closed.chmod(0o700)
    assert outcome.returncode == 0, outcome.stderr
    assert cell in outcome.stdout.splitlines()[1]


# flags and folders


def test_no_experiment(tmp_path, capsys):
    assert refused([str(tmp_path)], capsys) == f"status.py: error: no experiment in {tmp_path}"


@pytest.mark.parametrize("way", [[], ["--json"], ["--watch"], ["--html", "page.html"]])
def test_unknown_folder(tmp_path, capsys, way):
    assert f"{tmp_path / 'nowhere'}: no such folder" in refused([*way, str(tmp_path / "nowhere")], capsys)


@pytest.mark.parametrize(
    "words",
    [["--wath"], ["--watch=soon"], ["--watch", "0"], ["--watch", "-1"], ["--html"], ["--json", "--watch"]],
)
def test_bad_flags(capsys, words):
    assert refused(words, capsys).startswith("status.py: error: ")


def test_results_dir_is_the_default(tmp_path, capsys, monkeypatch):
    experiment(tmp_path / "here")
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    assert "here/run" in said([], capsys)


def test_nothing_is_needed_that_python_lacks(tmp_path):
    experiment(tmp_path)
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'numpy', 'matplotlib', 'orjson')); import status;"
        " status.main(sys.argv[3:]); status.main(sys.argv[1:])"
    )
    subprocess.run(
        [sys.executable, "-c", code, "--html", str(tmp_path / "page.html"), str(tmp_path)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def test_nothing_in_the_experiments_changes(tmp_path, capsys):
    place = experiment(tmp_path / "exps")
    before = {path: path.stat().st_mtime_ns for path in [place, *place.iterdir()]}
    said([str(tmp_path / "exps")], capsys)
    said(["--html", str(tmp_path / "page.html"), str(tmp_path / "exps")], capsys)
    assert {path: path.stat().st_mtime_ns for path in [place, *place.iterdir()]} == before


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    experiment(tmp_path)
    process = start(str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait()) == (b"", 0)


# watching


def read_until(terminal: int, wanted: bytes, seconds: float = 30) -> bytes:
    text, end = b"", time.monotonic() + seconds
    while wanted not in text and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                text += os.read(terminal, 65536)
            except OSError:  # the program has closed it
                break
    assert wanted in text, text
    return text


def watch_on_terminal(base: Path, columns: int = 100) -> tuple[subprocess.Popen[bytes], int]:
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = start("--watch", "0.5", str(base), stdin=inner, stdout=inner, stderr=inner, env=env)
    os.close(inner)
    return process, terminal


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_cleanly_and_restores_the_terminal(tmp_path, ending):
    experiment(tmp_path)
    process, terminal = watch_on_terminal(tmp_path)
    read_until(terminal, b"running")
    process.send_signal(ending)
    text = read_until(terminal, b"\x1b[?25h\x1b[?1049l")
    assert process.wait(10) == 0
    assert b"Traceback" not in text
    os.close(terminal)


@pytest.mark.slow
def test_watch_redraws_what_changed(tmp_path):
    experiment(tmp_path)
    process, terminal = watch_on_terminal(tmp_path)
    read_until(terminal, b"50/100")
    experiment(tmp_path, itr=77)
    read_until(terminal, b"77/100")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    os.close(terminal)


@pytest.mark.slow
def test_a_narrow_terminal_shortens_the_name_in_the_middle(tmp_path):
    experiment(tmp_path, "begin" + "x" * 150 + "end")
    process, terminal = watch_on_terminal(tmp_path, columns=110)
    text = read_until(terminal, b"running")
    process.send_signal(signal.SIGINT)
    assert re.search("begin.*…x*end".encode(), text)
    assert process.wait(10) == 0
    os.close(terminal)


def test_a_word_after_watch_that_is_no_number_is_a_folder():
    args = status.parse(["--watch", "2024-exps"])
    assert (args.watch, args.folders) == (10.0, [Path("2024-exps")])


# the page


def test_html_says_what_it_wrote(tmp_path, capsys):
    experiment(tmp_path)
    text = said(["--html", str(tmp_path / "page.html"), str(tmp_path)], capsys)
    assert re.fullmatch(rf"wrote {re.escape(str(tmp_path / 'page.html'))}: 1 experiment, [\d.]+ kB\n", text)


def page_of(base: Path, capsys: pytest.CaptureFixture[str]) -> str:
    said(["--html", str(base / "page.html"), str(base)], capsys)
    return (base / "page.html").read_text()


def drawn(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def test_the_page_fetches_nothing(tmp_path, capsys):
    experiment(tmp_path)
    assert not re.search(
        r'<(script|link|img|iframe)|(src|href)="(?!#)|url\((?!#)|@import', page_of(tmp_path, capsys)
    )


def test_the_page_escapes_what_comes_from_files(tmp_path, capsys):
    bad = "<script>&\"'"
    experiment(
        tmp_path,
        "x<script>y$z$",
        state=bad,
        reason=bad,
        job_id=bad,
        segments=[segment(0, 0, 50, reason=bad, job_id=bad)],
    )
    assert "<script" not in page_of(tmp_path, capsys)


def test_the_figure_names_experiment_axes_units_and_curves(tmp_path, capsys):
    experiment(
        tmp_path,
        segments=[segment(0, 0, 20), segment(1, 20, 50)],
        metrics=[metric(10), metric(20), metric(20, "eval"), metric(50)],
    )
    words = {
        "".join(element.itertext()).strip()
        for element in drawn(page_of(tmp_path, capsys)).iter("{http://www.w3.org/2000/svg}text")
    }
    assert words >= {
        "run",
        "loss",
        "nats per token",
        "learning rate",
        "gradient norm",
        "throughput",
        "tokens/s",
        "optimiser step",
        "training",
        "validation",
        "next segment",
    }


def test_the_page_lists_the_segments(tmp_path, capsys):
    experiment(
        tmp_path,
        state="stopped",
        segments=[segment(0, 0, 20, reason="wall time"), segment(1, 20, 50, reason="stop file")],
    )
    assert re.search("wall time.*stop file", page_of(tmp_path, capsys), re.DOTALL)


def test_an_experiment_without_metrics_has_a_chapter(tmp_path, capsys):
    (experiment(tmp_path) / "metrics.jsonl").unlink()
    assert "no metrics.jsonl" in page_of(tmp_path, capsys)


def test_the_newest_row_of_a_step_wins():
    rows = [metric(1, loss=5.0), metric(2, loss=4.0), metric(3, loss=3.0), metric(2, loss=2.0, extension=1)]
    assert draw.curves(rows, ["loss"])["loss"] == draw.Curve([1, 2, 3], [5.0, 2.0, 3.0])


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20_000), st.integers(0, 19_999))
@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large, HealthCheck.too_slow],
)
def test_a_long_curve_is_thinned_and_keeps_its_spikes(values, spike):
    values += [0.0] * (20_000 - len(values))
    values[spike] = 1e6
    thinned = draw.thin(draw.Curve([*range(20_000)], values))
    assert len(thinned) <= draw.POINTS
    assert (spike, 1e6) in zip(thinned.steps, thinned.values, strict=True)
    assert thinned.steps == sorted(thinned.steps)


def test_a_page_must_be_a_file_in_a_folder(tmp_path, capsys):
    experiment(tmp_path)
    assert "must be a file in a folder that is there" in refused(
        ["--html", str(tmp_path / "no" / "page.html"), str(tmp_path)], capsys
    )


# long and real runs


def test_a_long_run_is_looked_at_quickly(tmp_path):
    experiment(tmp_path, metrics=[metric(step) for step in range(60_000)] + [metric(60_000, "eval")])
    begin = time.perf_counter()
    read.survey([tmp_path])
    assert time.perf_counter() - begin < 0.5


@pytest.fixture(scope="module")
def stopped_and_resumed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """What status.py says of a real training after a stop and after its end, and its results folder."""
    base = tmp_path_factory.mktemp("real")
    process = programs.start(command(base))
    while not list(base.glob("*/*/run/metrics.jsonl")):  # its first row
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate()
    stopped = read.progress_of(folder(base), "run", read.Queue(None), time.time())
    outcome = train(base)
    assert outcome.returncode == 0, outcome.stderr
    return vars(stopped), vars(read.progress_of(folder(base), "run", read.Queue(None), time.time())), base


@pytest.mark.slow
def test_a_real_training_that_was_stopped(stopped_and_resumed):
    row = stopped_and_resumed[0]
    assert row["state"] == "stopped"
    assert 0 < row["step"] < row["iterations"] == 60


@pytest.mark.slow
def test_a_real_training_that_finished(stopped_and_resumed):
    row, summary = (
        stopped_and_resumed[1],
        json.loads((folder(stopped_and_resumed[2]) / "summary.json").read_text()),
    )
    assert (row["state"], row["percent"], row["segments"]) == ("finished", 100, 2)
    assert (row["loss"], row["val_perplexity"]) == (summary["train_loss"][-1], summary["final_val_pp"])


@pytest.mark.slow
def test_the_page_of_a_real_training(stopped_and_resumed, tmp_path, capsys):
    said(["--html", str(tmp_path / "page.html"), str(stopped_and_resumed[2])], capsys)
    assert "next segment" in "".join(drawn((tmp_path / "page.html").read_text()).itertext())
