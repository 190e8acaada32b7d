"""After a job: when a chain goes on, and when it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iridis import chain
from iridis.chain import Cause
from optim.checkpoint import save_checkpoint
from optim.lock import TAKEN_OVER, Lock
from optim.outcome import Kind, Outcome, ended, read_outcome

STOPPED = ended(Kind.STOPPED, "SIGUSR1")
CRASH = ended(Kind.CRASHED, "IndexError: x")
LOST = ended(Kind.REPLACED, f"{TAKEN_OVER}; this run ends without saving")


def row(
    start: int,
    end: int,
    state: str = "stopped",
    reached: int | None = None,
    reason: str = "time limit",
    **more: Any,
) -> dict[str, Any]:
    return {
        "job_id": "7",
        "restart": 0,
        "start_step": start,
        "end_step": end,
        "reached": end if reached is None else reached,
        "state": state,
        "reason": reason,
        "seconds": 1.0,
        **more,
    }


def verdict(
    folder: Path, *rows: dict[str, Any], outcome: Outcome = STOPPED, cause: Cause = Cause.NONE
) -> tuple[str, str]:
    return chain.verdict(folder, list(rows), outcome, cause)


@pytest.mark.parametrize("kind", [Kind.FINISHED, Kind.COMPLETE])
def test_a_training_with_no_work_left_ends_the_chain(tmp_path: Path, kind: Kind) -> None:
    assert verdict(tmp_path, row(0, 9, "finished"), outcome=ended(kind, "done")) == (chain.FINISHED, "done")


def test_a_summary_of_before_an_extension_does_not_end_the_chain(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    assert verdict(tmp_path, row(0, 9)) == (chain.AGAIN, "time limit")


@pytest.mark.parametrize("kind", [Kind.REFUSED, Kind.BAD_NUMBERS, Kind.PAUSED])
def test_what_a_person_must_look_at_stops_the_chain_with_its_reason(tmp_path: Path, kind: Kind) -> None:
    assert verdict(tmp_path, row(0, 9, "failed"), outcome=ended(kind, "no room")) == (chain.STOP, "no room")


def test_a_stop_with_progress_goes_on_for_its_reason(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 9, reason="preempted")) == (chain.AGAIN, "preempted")


def test_an_evaluation_that_takes_longer_than_three_jobs_goes_on_as_long_as_they_bring_it_on(
    tmp_path: Path,
) -> None:
    assert (
        verdict(tmp_path, row(9, 9), row(9, 9, evaluated=True), row(9, 9, evaluated=True), row(9, 9))[0]
        == chain.AGAIN
    )


def test_a_stop_file_in_the_experiment_stops_the_chain(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert verdict(tmp_path, row(0, 9, reason="stop file")) == (
        chain.STOP,
        f"stopped by the file {tmp_path / 'stop'}",
    )


def test_a_person_who_stops_the_training_stops_the_chain(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 9), outcome=ended(Kind.STOPPED, "SIGINT", by_hand=True)) == (
        chain.STOP,
        "cancelled",
    )


def test_a_person_who_cancels_the_job_stops_the_chain(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 9), cause=Cause.CANCELLED) == (chain.STOP, "cancelled")


def test_three_jobs_in_a_row_without_progress_stop_the_chain(tmp_path: Path) -> None:
    idle = row(5, 5)
    assert verdict(tmp_path, row(0, 5), idle, idle)[0] == chain.AGAIN
    assert verdict(tmp_path, row(0, 5), idle, idle, idle) == (chain.STOP, "no progress in 3 jobs: time limit")


def test_progress_between_jobs_without_it_keeps_the_chain_going(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(5, 5), row(5, 5), row(5, 6), row(6, 6))[0] == chain.AGAIN


def test_the_first_crash_is_tried_again(tmp_path: Path) -> None:
    assert verdict(tmp_path, row(0, 7, "failed", 9, "IndexError: x"), outcome=CRASH) == (
        chain.AGAIN,
        "IndexError: x",
    )


def test_a_second_crash_at_the_same_step_stops_the_chain(tmp_path: Path) -> None:
    crashes = row(0, 7, "failed", 9), row(7, 7, "failed", 9, "IndexError: x")
    assert verdict(tmp_path, *crashes, outcome=CRASH) == (
        chain.STOP,
        "crashed at step 9 twice: IndexError: x",
    )


def test_crashes_at_different_steps_are_tried_again(tmp_path: Path) -> None:
    assert (
        verdict(tmp_path, row(0, 7, "failed", 9), row(7, 14, "failed", 15), outcome=CRASH)[0] == chain.AGAIN
    )


def test_crashes_at_one_step_with_a_stop_between_are_not_in_a_row(tmp_path: Path) -> None:
    assert (
        verdict(tmp_path, row(0, 7, "failed", 9), row(7, 8), row(8, 8, "failed", 9), outcome=CRASH)[0]
        == chain.AGAIN
    )


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
    assert chain.judge(tmp_path, 137, Cause.NONE, None) == (chain.AGAIN, "killed, signal 9")
    assert {key: last_row(tmp_path)[key] for key in ("state", "end_step", "reached", "chain")} == {
        "state": "failed",
        "end_step": 5,
        "reached": 8,
        "chain": "again",
    }


def test_the_outcome_of_a_killed_training_is_written_for_it(tmp_path: Path, job: None) -> None:
    write_ledger(tmp_path, row(0, 5, "running", 8, "unknown"))
    chain.judge(tmp_path, 137, Cause.NONE, None)
    assert read_outcome(tmp_path / "outcome.json") == ended(Kind.CRASHED, "killed, signal 9", 8)


def test_a_crash_before_the_first_row_is_entered_at_the_newest_checkpoint(tmp_path: Path, job: None) -> None:
    (tmp_path / "ckpt_30.pt").touch()
    assert chain.judge(tmp_path, 1, Cause.NONE, CRASH)[0] == chain.AGAIN
    assert (last_row(tmp_path)["start_step"], last_row(tmp_path)["state"]) == (30, "failed")


@pytest.mark.parametrize("others", [[], ["ckpt_10.pt"]])
def test_a_final_checkpoint_counts_as_the_newest(tmp_path: Path, job: None, others: list[str]) -> None:
    save_checkpoint(tmp_path / "ckpt.pt", {"itr": 20, "model": {}})
    for name in others:
        (tmp_path / name).touch()
    chain.judge(tmp_path, 1, Cause.NONE, None)
    assert last_row(tmp_path)["start_step"] == 20
    assert json.loads((tmp_path / "status.json").read_text())["checkpoint"] == 20


def test_two_crashes_before_the_first_row_stop_the_chain(
    tmp_path: Path, job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chain.judge(tmp_path, 1, Cause.NONE, CRASH)[0] == chain.AGAIN
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert chain.judge(tmp_path, 1, Cause.NONE, CRASH)[0] == chain.STOP
    assert last_row(tmp_path)["chain"].startswith("stop: crashed at step 0 twice")


def test_a_signal_during_the_start_is_no_crash(tmp_path: Path, job: None) -> None:
    assert chain.judge(tmp_path, 143, Cause.PREEMPTED, None) == (chain.AGAIN, "preempted")
    assert not (tmp_path / "segments.jsonl").exists()


def test_a_person_who_cancels_during_the_start_stops_the_chain(tmp_path: Path, job: None) -> None:
    assert chain.judge(tmp_path, 143, Cause.CANCELLED, None) == (chain.STOP, "cancelled")


def test_bad_input_before_the_first_row_stops_the_chain_with_its_reason(tmp_path: Path, job: None) -> None:
    assert chain.judge(tmp_path, 2, Cause.NONE, ended(Kind.REFUSED, "no such data")) == (
        chain.STOP,
        "no such data",
    )


def test_a_training_that_an_earlier_job_finished_ends_the_chain(tmp_path: Path, job: None) -> None:
    assert chain.judge(tmp_path, 0, Cause.NONE, ended(Kind.FINISHED, "finished already"))[0] == chain.FINISHED


def test_three_starts_that_outlast_their_time_limit_stop_the_chain(
    tmp_path: Path, job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for number in ("7", "8", "9"):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        outcomes.append(chain.judge(tmp_path, 143, Cause.TIME_LIMIT, None)[0])
    assert outcomes == [chain.AGAIN, chain.AGAIN, chain.STOP]


def test_what_ended_an_earlier_chain_is_not_held_against_a_new_one(tmp_path: Path) -> None:
    over = row(5, 5, chain="stop: no progress in 3 jobs")
    assert verdict(tmp_path, row(5, 5), row(5, 5), over, row(5, 5))[0] == chain.AGAIN


def test_the_cause_that_slurm_gave_replaces_the_name_of_the_signal(tmp_path: Path, job: None) -> None:
    write_ledger(tmp_path, row(0, 5, reason="SIGTERM"))
    assert chain.judge(tmp_path, 83, Cause.PREEMPTED, STOPPED) == (chain.AGAIN, "preempted")
    assert last_row(tmp_path)["reason"] == "preempted"


def test_a_start_that_lost_its_experiment_leaves_ledger_and_chain_to_the_other(
    tmp_path: Path, job: None
) -> None:
    write_ledger(tmp_path, row(0, 5, "running"), row(5, 5, "running", restart=1))
    before = (tmp_path / "segments.jsonl").read_bytes()
    assert chain.judge(tmp_path, 2, Cause.NONE, LOST)[0] == chain.REPLACED
    assert (tmp_path / "segments.jsonl").read_bytes() == before


def test_a_training_that_a_hook_found_complete_ends_the_chain(tmp_path: Path, job: None) -> None:
    write_ledger(tmp_path, row(0, 5, "finished"))
    assert chain.judge(tmp_path, 0, Cause.NONE, ended(Kind.COMPLETE, "no better for ten evaluations")) == (
        chain.FINISHED,
        "no better for ten evaluations",
    )


def test_verdict_and_reason_are_told_by_name_in_a_line_each(
    tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outcome").write_text(json.dumps(ended(Kind.REFUSED, "one\ntwo").as_json()))
    assert (
        chain.main([str(tmp_path / "experiment"), "--code", "2", "--outcome", str(tmp_path / "outcome")]) == 0
    )
    assert capsys.readouterr().out == "VERDICT=stop\nREASON=one; two\n"


def test_a_ledger_that_cannot_be_reached_stops_the_chain_with_what_was_told(
    tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outcome").write_text(
        json.dumps(ended(Kind.REFUSED, "writing: No space left on device").as_json())
    )
    (tmp_path / "folder").touch()  # a file, where a folder should be
    assert (
        chain.main(
            [str(tmp_path / "folder" / "experiment"), "--code", "1", "--outcome", str(tmp_path / "outcome")]
        )
        == 0
    )
    assert capsys.readouterr().out.startswith("VERDICT=stop\nREASON=writing: No space left on device; ")


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [("finished", 0, chain.FINISHED), ("stopped", 0, chain.AGAIN), ("stopped", 83, chain.AGAIN)],
)
def test_where_the_outcome_is_lost_the_ledger_counts(
    tmp_path: Path, job: None, state: str, code: int, expected: str
) -> None:
    write_ledger(tmp_path, row(0, 5, state))
    assert chain.judge(tmp_path, code, Cause.NONE, None)[0] == expected


def test_a_job_that_was_killed_within_a_step_at_its_time_limit_did_not_crash(
    tmp_path: Path, job: None
) -> None:
    write_ledger(tmp_path, row(0, 5, "failed", 8, "IndexError: x"), row(5, 5, "running", 8, "unknown"))
    assert chain.judge(tmp_path, 137, Cause.OUTLASTED, None)[0] == chain.AGAIN
    assert (last_row(tmp_path)["state"], last_row(tmp_path)["reason"]) == (
        "stopped",
        "time limit within a step or save",
    )


def test_a_job_whose_processes_cannot_be_killed_at_its_time_limit_hands_over(
    tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = Lock(tmp_path / "lock")
    try:
        assert chain.main([str(tmp_path), "--code", "137", "--cause", str(Cause.OUTLASTED)]) == 0
    finally:
        lock.release()
    assert capsys.readouterr().out.startswith("VERDICT=again\n")


def test_every_row_tells_which_code_it_is_of(tmp_path: Path, job: None) -> None:
    chain.judge(tmp_path, 1, Cause.NONE, CRASH)
    assert {"revision", "dirty", "changes"} <= last_row(tmp_path).keys()


@pytest.mark.parametrize(
    ("version", "files"),
    [
        ("0::/job_7/step_batch", {"job_7/step_batch/memory.events": "low 0\noom 1\noom_kill 1\n"}),
        (
            "0::/job_7/step_batch/user",
            {"job_7/memory.events": "oom_kill 2\n", "job_7/step_batch/user/memory.events": "oom_kill 0\n"},
        ),
        (
            "4:memory:/slurm/job_7/step_batch",
            {"memory/slurm/job_7/step_batch/memory.oom_control": "under_oom 0\noom_kill 1\n"},
        ),
    ],
)
def test_memory_that_ran_out_is_seen_in_the_job_s_control_group(
    tmp_path: Path, version: str, files: dict[str, str]
) -> None:
    (tmp_path / "cgroup").write_text(version + "\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert chain.oom_killed(tmp_path / "cgroup", tmp_path)


@pytest.mark.parametrize("place", ["0::/slurmstepd.scope/job_7/step_batch", "0::/slurmstepd.scope"])
def test_memory_that_another_job_ran_out_of_is_not_this_ones(tmp_path: Path, place: str) -> None:
    (tmp_path / "cgroup").write_text(place + "\n")
    (tmp_path / "slurmstepd.scope" / "job_7" / "step_batch").mkdir(parents=True)
    (tmp_path / "slurmstepd.scope" / "memory.events").write_text("oom_kill 3\n")
    (tmp_path / "slurmstepd.scope" / "job_7" / "memory.events").write_text("oom_kill 0\n")
    assert not chain.oom_killed(tmp_path / "cgroup", tmp_path)


@pytest.mark.parametrize("text", ["oom_kill 0\n", "", "nonsense\n"])
def test_a_control_group_that_had_enough_memory_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "cgroup").write_text("0::/job_7\n2:cpu:/\n")
    (tmp_path / "job_7").mkdir()
    (tmp_path / "job_7" / "memory.events").write_text(text)
    assert not chain.oom_killed(tmp_path / "cgroup", tmp_path)


@pytest.mark.parametrize("state", ["running", "failed"])
@pytest.mark.parametrize("told", [None, ended(Kind.CRASHED, "RuntimeError: Connection reset by peer", 8)])
def test_a_training_that_the_kernel_killed_for_its_memory_is_out_of_memory(
    tmp_path: Path, job: None, monkeypatch: pytest.MonkeyPatch, told: Outcome | None, state: str
) -> None:
    monkeypatch.setattr(chain, "oom_killed", lambda: True)
    write_ledger(
        tmp_path,
        row(0, 5, state, 8, "unknown" if state == "running" else "RuntimeError: Connection reset by peer"),
    )
    reason = "out of memory: the job had MEMORY=16G, of which its processes took more; set a larger MEMORY"
    assert chain.judge(tmp_path, 137, Cause.NONE, chain.seen(137, told, "16G")) == (chain.AGAIN, reason)
    assert last_row(tmp_path)["reason"] == reason
