"""status.py: what a row says of trainings and of folders that are damaged, strange or not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import status
from monitor import draw, page, read
from tests.programs import ROOT
from tests.statuses import (
    NOW,
    experiment,
    lines,
    metric,
    refused,
    said,
    seen,
    segment,
    start,
    write_queue,
    write_squeue,
)

pytestmark = pytest.mark.usefixtures("no_programs")


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
