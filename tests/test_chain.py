"""After a job: when a chain goes on, and when it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iridis import chain
from optim.lock import TAKEN_OVER


def row(start: int, end: int, state: str = "stopped", reached: int | None = None, reason: str = "time limit", **more: Any) -> dict[str, Any]:
    return {"job_id": "7", "restart": 0, "start_step": start, "end_step": end, "reached": end if reached is None else reached, "state": state,
            "reason": reason, "seconds": 1.0, **more}


def verdict(folder: Path, *rows: dict[str, Any], code: int = 83, cause: str = "", said: str = "") -> tuple[str, str]:
    return chain.verdict(folder, list(rows), code, cause, said)


def test_a_finished_training_ends_the_chain(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    assert verdict(tmp_path, row(0, 9, "finished"), code=0)[0] == chain.FINISHED


def test_a_summary_of_before_an_extension_does_not_end_the_chain(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    assert verdict(tmp_path, row(0, 9)) == (chain.AGAIN, "time limit")


def test_a_stop_with_progress_goes_on_for_its_reason(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 9, reason="preempted")) == (chain.AGAIN, "preempted")


def test_bad_input_stops_the_chain_with_what_was_said(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 9, "failed"), code=2, said="main.py: error: no room") == (chain.STOP, "main.py: error: no room")


def test_a_stop_file_in_the_experiment_stops_the_chain(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert verdict(tmp_path, row(0, 9, reason="stop file")) == (chain.STOP, f"stopped by the file {tmp_path / 'stop'}")


@pytest.mark.parametrize(("reason", "cause"), [("SIGINT", ""), ("cancelled", "cancelled")])
def test_a_person_who_cancels_stops_the_chain(tmp_path: Path, reason: str, cause: str) -> None:
    assert verdict(tmp_path, row(0, 9, reason=reason), cause=cause) == (chain.STOP, "cancelled")


def test_three_jobs_in_a_row_without_progress_stop_the_chain(tmp_path: Path) -> None:
    idle = row(5, 5)
    assert verdict(tmp_path, row(0, 5), idle, idle)[0] == chain.AGAIN
    assert verdict(tmp_path, row(0, 5), idle, idle, idle) == (chain.STOP, "no progress in 3 jobs: time limit")


def test_progress_between_jobs_without_it_keeps_the_chain_going(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(5, 5), row(5, 5), row(5, 6), row(6, 6))[0] == chain.AGAIN


def test_the_first_crash_is_tried_again(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 7, "failed", 9, "IndexError: x"), code=1) == (chain.AGAIN, "IndexError: x")


def test_a_second_crash_at_the_same_step_stops_the_chain(tmp_path: Path) -> None:
    crashes = row(0, 7, "failed", 9), row(7, 7, "failed", 9, "IndexError: x")
    assert verdict(tmp_path, *crashes, code=1) == (chain.STOP, "crashed at step 9 twice: IndexError: x")


def test_crashes_at_different_steps_are_tried_again(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 7, "failed", 9), row(7, 14, "failed", 15), code=1)[0] == chain.AGAIN


def test_crashes_at_one_step_with_a_stop_between_are_not_in_a_row(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 7, "failed", 9), row(7, 8), row(8, 8, "failed", 9), code=1)[0] == chain.AGAIN


# judge: the same with the ledger on disk, and this job's own row completed

@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")


def write_ledger(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "segments.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def last_row(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "segments.jsonl").read_text().splitlines()[-1])


def test_a_killed_training_is_entered_as_failed_with_its_signal(tmp_path: Path, job: None) -> None:
    write_ledger(tmp_path, row(0, 5, "running", 8, "unknown"))
    assert chain.judge(tmp_path, 137, "", "out of memory") == (chain.AGAIN, "killed, signal 9: out of memory")
    assert {key: last_row(tmp_path)[key] for key in ("state", "end_step", "reached", "chain")} == {
        "state": "failed", "end_step": 5, "reached": 8, "chain": "again"}


def test_a_crash_before_the_first_row_is_entered_at_the_newest_checkpoint(tmp_path: Path, job: None) -> None:
    (tmp_path / "ckpt_30.pt").touch()
    assert chain.judge(tmp_path, 1, "", "ImportError: x")[0] == chain.AGAIN
    assert (last_row(tmp_path)["start_step"], last_row(tmp_path)["state"]) == (30, "failed")


def test_two_crashes_before_the_first_row_stop_the_chain(tmp_path: Path, job: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chain.judge(tmp_path, 1, "", "ImportError: x")[0] == chain.AGAIN
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert chain.judge(tmp_path, 1, "", "ImportError: x")[0] == chain.STOP
    assert last_row(tmp_path)["chain"].startswith("stop: crashed at step 0 twice")


def test_a_signal_during_the_start_is_no_crash(tmp_path: Path, job: None) -> None:
    assert chain.judge(tmp_path, 143, "preempted", "") == (chain.AGAIN, "preempted")
    assert not (tmp_path / "segments.jsonl").exists()


def test_a_person_who_cancels_during_the_start_stops_the_chain(tmp_path: Path, job: None) -> None:
    assert chain.judge(tmp_path, 143, "cancelled", "") == (chain.STOP, "cancelled")


def test_three_starts_that_outlast_their_time_limit_stop_the_chain(tmp_path: Path, job: None, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = []
    for number in ("7", "8", "9"):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        outcomes.append(chain.judge(tmp_path, 143, "time limit", "")[0])
    assert outcomes == [chain.AGAIN, chain.AGAIN, chain.STOP]


def test_what_ended_an_earlier_chain_is_not_held_against_a_new_one(tmp_path: Path) -> None:
    ended = row(5, 5, chain="stop: no progress in 3 jobs")
    assert verdict(tmp_path, row(5, 5), row(5, 5), ended, row(5, 5))[0] == chain.AGAIN


def test_the_cause_that_slurm_gave_replaces_the_name_of_the_signal(tmp_path: Path, job: None) -> None:
    write_ledger(tmp_path, row(0, 5, reason="SIGTERM"))
    assert chain.judge(tmp_path, 83, "preempted", "") == (chain.AGAIN, "preempted")
    assert last_row(tmp_path)["reason"] == "preempted"


def test_a_start_that_lost_its_experiment_leaves_ledger_and_chain_to_the_other(tmp_path: Path, job: None) -> None:
    write_ledger(tmp_path, row(0, 5, "running"), row(5, 5, "running", restart=1))
    before = (tmp_path / "segments.jsonl").read_bytes()
    assert chain.judge(tmp_path, 2, "", f"main.py: error: {TAKEN_OVER}; this run ends without saving")[0] == chain.REPLACED
    assert (tmp_path / "segments.jsonl").read_bytes() == before


def test_what_an_orphan_said_in_the_common_log_does_not_end_the_chain_of_its_successor(tmp_path: Path, job: None) -> None:
    write_ledger(tmp_path, row(0, 5))
    assert chain.judge(tmp_path, 83, "time limit", f"main.py: error: {TAKEN_OVER}; this run ends without saving") == (chain.AGAIN, "time limit")


def test_the_last_error_line_of_a_log_is_what_was_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("main.py: error: first\nmain.py: error: second\nTraceback noise\nsrun: error: n1: task 0: Exited\n")
    assert chain.last_line(log) == "main.py: error: second"


def test_without_an_error_line_the_last_line_was_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("warning\nIndexError: index out of range\n\n")
    assert chain.last_line(log) == "IndexError: index out of range"


def test_a_log_that_is_not_there_said_nothing(tmp_path: Path) -> None:
    assert chain.last_line(tmp_path / "none") == chain.last_line(None) == ""


def test_a_ledger_that_cannot_be_reached_stops_the_chain_with_what_was_said(tmp_path: Path, job: None,
                                                                           capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_text("main.py: error: writing: No space left on device\n")
    (tmp_path / "folder").touch()  # a file, where a folder should be
    assert chain.main([str(tmp_path / "folder" / "experiment"), "--code", "1", "--log", str(log)]) == 0
    assert capsys.readouterr().out.startswith("stop: main.py: error: writing: No space left on device; ")
