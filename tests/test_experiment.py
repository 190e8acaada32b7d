"""The files of an experiment: metrics without doubles, rows of segments, the status, and files that are
never half written.
"""

import json
import math
import os
import time

import pytest

from errors import UserError
from files import read_json, replace_atomically, write_atomically, write_json
from optim.experiment import ABANDONED_SECONDS, Experiment, Metrics

# metrics.jsonl


def row(step, kind="train", **more):
    scores = (
        {}
        if kind == "train"
        else {"val_loss": 1.0, "val_pp": 3.0, "val_acc": 0.5, "average_depth": 3.0, "n_tokens": 9}
    )
    return {"kind": kind, "step": step, "loss": step / 10, **scores, **more}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def written(path, *rows):
    metrics = Metrics(path)
    for one in rows:
        metrics.append(one)
    return path


def test_rows_are_kept_in_order(path):
    written(path, row(10), row(20), row(20, "eval"))
    assert Metrics(path).rows() == [row(10), row(20), row(20, "eval")]


def test_row_is_one_line_of_json(path):
    assert [json.loads(line) for line in written(path, row(10), row(20)).read_text().split("\n")[:-1]] == [
        row(10),
        row(20),
    ]


def test_same_step_is_not_written_twice(path):
    assert Metrics(written(path, row(10), row(10, loss=9))).rows() == [row(10)]


def test_replayed_step_is_not_written_twice(path):
    written(path, row(10), row(20))
    assert Metrics(written(path, row(20), row(30))).rows() == [row(10), row(20), row(30)]


def test_kinds_of_the_same_step_are_different_rows(path):
    assert len(Metrics(written(path, row(10), row(10, "eval"), row(10, "final"))).rows()) == 3


def test_row_without_what_a_summary_is_made_of_is_refused(path):
    path.write_text(json.dumps({"kind": "eval", "step": 10, "val_loss": 1.0}) + "\n")
    with pytest.raises(UserError, match="no metrics row"):
        Metrics(path)


def test_append_tells_whether_the_row_was_new(path):
    metrics = Metrics(path)
    assert [metrics.append(row(10)), metrics.append(row(10))] == [True, False]


def test_rows_are_on_disk_as_soon_as_they_are_appended(path):
    metrics = Metrics(path)
    metrics.append(row(10))
    assert path.read_text() == json.dumps(row(10)) + "\n"


@pytest.mark.parametrize(
    "torn", ['{"kind": "train", "step": 30', '{"kind": "train", "step": 30, "loss": 3.0}', "{", "\0\0\0"]
)
def test_torn_last_line_is_cut(path, torn):
    whole = written(path, row(10), row(20)).read_bytes()
    path.write_bytes(whole + torn.encode())
    Metrics(path)
    assert path.read_bytes() == whole


def test_step_of_a_torn_line_can_be_written_again(path):
    written(path, row(10), row(20))
    os.truncate(path, path.stat().st_size - 5)
    assert Metrics(written(path, row(20))).rows() == [row(10), row(20)]


def test_file_of_one_torn_line_becomes_empty(path):
    path.write_text('{"kind": "tr')
    Metrics(path)
    assert path.read_bytes() == b""


def test_old_rows_stay_byte_for_byte(path):
    old = (
        b'{"step":10,   "kind":"train", "loss": 1.10, "own": "caf\xc3\xa9"}\n{"kind": "skipped", "step":'
        b" 10}\n"
    )
    path.write_bytes(old)
    assert written(path, row(10), row(20)).read_bytes() == old + json.dumps(row(20)).encode() + b"\n"


def test_opening_does_not_touch_a_whole_file(path):
    before = written(path, row(10)).stat().st_mtime_ns
    Metrics(path)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "line", ["hello", "[]", "5", '{"kind": "train"}', '{"kind": "train", "step": []}', "", "\udcff"]
)
def test_line_that_is_no_metrics_row_is_refused(path, line):
    path.write_bytes(json.dumps(row(10)).encode() + b"\n" + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        Metrics(path)


# segments.jsonl and status.json


def begun(folder, step=0, iterations=100):
    experiment = Experiment(folder, iterations)
    experiment.begin_segment(step)
    return experiment


def segments(folder):
    return [json.loads(line) for line in (folder / "segments.jsonl").read_text().splitlines()]


def status(folder):
    return json.loads((folder / "status.json").read_text())


def test_folder_is_made_with_its_parents(tmp_path):
    Experiment(tmp_path / "owt2" / "base" / "run", 100).close()
    assert (tmp_path / "owt2" / "base" / "run").is_dir()


def test_folder_holds_but_the_lock_until_the_first_segment(tmp_path):
    Experiment(tmp_path, 100).close()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        Experiment(tmp_path / "file" / "run", 100)


def temporary(folder, age):
    path = folder / ".ckpt_5.pt.4711.tmp"
    path.touch()
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_old_temporary_files_of_a_killed_job_are_removed(tmp_path):
    path = temporary(tmp_path, age=2 * ABANDONED_SECONDS)
    Experiment(tmp_path, 100).close()
    assert not path.exists()


def test_fresh_temporary_files_of_another_process_are_left(tmp_path):
    path = temporary(tmp_path, age=1)
    Experiment(tmp_path, 100).close()
    assert path.exists()


def test_status_runs_from_the_first_moment(tmp_path):
    begun(tmp_path, 40)
    assert {key: status(tmp_path)[key] for key in ("state", "itr", "iterations", "reason", "checkpoint")} == {
        "state": "running",
        "itr": 40,
        "iterations": 100,
        "reason": "",
        "checkpoint": 40,
    }


@pytest.mark.parametrize(
    ("state", "reason"),
    [("stopped", "SIGTERM"), ("finished", "all iterations done"), ("failed", "ValueError: x")],
)
def test_status_tells_how_the_job_ended(tmp_path, state, reason):
    begun(tmp_path).record(state, 50, 40, reason)
    assert {key: status(tmp_path)[key] for key in ("state", "itr", "reason", "checkpoint")} == {
        "state": state,
        "itr": 50,
        "reason": reason,
        "checkpoint": 40,
    }


def test_status_tells_when_it_was_written(tmp_path):
    before = time.time()
    begun(tmp_path)
    assert before <= status(tmp_path)["updated"] <= time.time()


def test_status_takes_further_values(tmp_path):
    begun(tmp_path).record("running", 50, 40, loss=2.5)
    assert status(tmp_path)["loss"] == 2.5


def test_job_has_one_row_from_start_to_newest_checkpoint(tmp_path):
    experiment = begun(tmp_path, 20)
    experiment.record("running", 50, 40)
    experiment.record("stopped", 55, 55, "SIGTERM")
    assert [(one["start_step"], one["end_step"], one["reason"]) for one in segments(tmp_path)] == [
        (20, 55, "SIGTERM")
    ]


def test_each_job_has_a_row_of_its_own(tmp_path):
    first = begun(tmp_path, 0)
    first.record("stopped", 30, 30, "SIGTERM")
    first.close()
    begun(tmp_path, 30).record("finished", 100, 100, "all iterations done")
    assert [(one["segment"], one["start_step"], one["end_step"]) for one in segments(tmp_path)] == [
        (0, 0, 30),
        (1, 30, 100),
    ]


def test_row_of_a_killed_job_stays_as_it_was(tmp_path):
    first = begun(tmp_path, 0)
    first.record("running", 37, 30)
    first.close()
    killed = segments(tmp_path)[0]
    begun(tmp_path, 30)
    assert segments(tmp_path)[0] == killed


def test_checkpoint_that_a_killed_job_had_no_time_to_tell_of_is_its_own(tmp_path):
    first = begun(tmp_path, 0)
    first.record("running", 9, 0)
    first.close()
    begun(tmp_path, 10)
    assert [(one["end_step"], one["reached"]) for one in segments(tmp_path)] == [(10, 10), (10, 10)]


def test_row_of_a_killed_job_has_an_unknown_reason(tmp_path):
    begun(tmp_path, 0).record("running", 37, 30)
    assert (segments(tmp_path)[0]["end_step"], segments(tmp_path)[0]["reason"]) == (30, "unknown")


def test_row_names_the_slurm_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    begun(tmp_path)
    assert segments(tmp_path)[0]["job_id"] == "4711"


def test_row_counts_the_jobs_seconds(tmp_path):
    experiment = begun(tmp_path)
    time.sleep(0.05)
    experiment.record("stopped", 1, 1, "SIGTERM")
    assert 0.05 <= segments(tmp_path)[0]["seconds"] < 30


def test_damaged_segments_file_is_refused(tmp_path):
    (tmp_path / "segments.jsonl").write_text("hello\n")
    with pytest.raises(UserError, match=r"segments\.jsonl"):
        Experiment(tmp_path, 100)


def test_numbered_checkpoints_can_be_removed(tmp_path):
    for name in ("ckpt.pt", "ckpt_5.pt", "ckpt_10.pt", "summary.json"):
        (tmp_path / name).touch()
    Experiment(tmp_path, 100).remove_numbered()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pt", "lock", "summary.json"]


def test_numbered_checkpoints_of_steps_that_are_kept_are_not_removed(tmp_path):
    for name in ("ckpt.pt", "ckpt_5.pt", "ckpt_10.pt"):
        (tmp_path / name).touch()
    Experiment(tmp_path, 100).remove_numbered({5})
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["ckpt.pt", "ckpt_5.pt"]


def test_missing_json_file_is_none(tmp_path):
    assert read_json(tmp_path / "summary.json") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "\udcff"])
def test_damaged_json_file_is_refused(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"summary\.json"):
        read_json(tmp_path / "summary.json")


# files as a whole


@pytest.mark.parametrize("content", ["new text é", b"new bytes \xff", "", b""])
def test_content_is_replaced(tmp_path, content):
    (tmp_path / "file").write_text("a longer old content")
    write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)


def failing(temporary):
    temporary.write_text("half of the new con")
    raise RuntimeError("the writer failed")


def test_failing_writer_leaves_the_old_content(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError, match="the writer failed"):
        replace_atomically(tmp_path / "file", failing)
    assert (tmp_path / "file").read_text() == "old"


def test_failing_writer_leaves_no_temporary_file(tmp_path):
    with pytest.raises(RuntimeError, match="the writer failed"):
        replace_atomically(tmp_path / "file", failing)
    assert list(tmp_path.iterdir()) == []


def test_value_that_is_no_json_leaves_the_old_content(tmp_path):
    write_json(tmp_path / "file", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"new": object()})
    assert json.loads((tmp_path / "file").read_text()) == {"old": 1}


@pytest.mark.parametrize(
    "write",
    [
        lambda path, value: write_json(path, value),
        lambda path, value: Metrics(path).append(
            {"kind": "eval", "step": 1, "val_loss": value, "val_pp": value, "val_acc": 0.5}
        ),
    ],
)
def test_what_is_no_number_is_null_in_every_file(tmp_path, write):
    write(tmp_path / "file", {"a": [math.inf, -math.inf, 2.5], "b": (math.nan, "NaN", None, True)})
    row = json.loads((tmp_path / "file").read_text(), parse_constant=pytest.fail)
    assert row.get("val_loss", row) == {"a": [None, None, 2.5], "b": [None, "NaN", None, True]}


def test_reader_never_sees_a_half_written_file(tmp_path):
    old, seen = "old " * 1000, []
    (tmp_path / "file").write_text(old)

    def write(temporary):
        temporary.write_text("new")
        seen.append((tmp_path / "file").read_text())

    replace_atomically(tmp_path / "file", write)
    assert (seen, (tmp_path / "file").read_text()) == ([old], "new")


def test_open_file_keeps_its_content_when_it_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    with open(tmp_path / "file") as reader:
        write_atomically(tmp_path / "file", "new")
        assert reader.read() == "old"
