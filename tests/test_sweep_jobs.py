"""Sweeps as arrays, without a cluster: how they are cut, and that a task is never taken for its array."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from errors import UserError
from files import write_json
from iridis import cells
from iridis.arrays import experiments, failures, mark_of, ranges
from monitor import read
from optim.lock import job_name, name_of
from optim.outcome import Kind, ended
from tests.job_calls import call
from tests.programs import ROOT
from tests.statuses import said, write_queue


def shell(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run functions of iridis/train.sh, with the programs of SLURM in a folder."""
    settings = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SCRATCH_DIR": str(folder),
        "USE_CONDA": "no",
        **env,
    }
    return subprocess.run(
        ["bash", "-c", f"source iridis/train.sh\n{script}"],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_a_task_is_named_by_array_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "12", "ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert job_name() == "12_3"
    assert name_of({"job": "12_3", "host": "n1"}) == "job 12_3 on n1"


@pytest.mark.parametrize(
    ("task", "command"),
    [
        ({}, "scontrol requeue 12"),
        ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "scontrol requeue 12_3"),
    ],
)
def test_a_task_requeues_itself_alone(tmp_path: Path, task: dict[str, str], command: str) -> None:
    program(tmp_path, "scontrol", f'echo scontrol "$@" >>"{tmp_path}/calls"')
    shell("requeue", tmp_path, SLURM_JOB_ID="12", **task)
    assert (tmp_path / "calls").read_text() == f"{command}\n"


@pytest.mark.parametrize(
    ("old", "dependency", "new"),
    [
        ("12_3", "afterok:12_*(unfulfilled)", "afterok:12:77"),
        ("12_3", "afterok:12_*(unfulfilled):4(unfulfilled)", "afterok:12:77:4"),
        ("12_3", "afterok:12_3(unfulfilled),singleton(unfulfilled)", "afterok:77,singleton"),
        ("12", "afterok:12(unfulfilled)", "afterok:77"),
        ("12_3", "afterok:112_*(unfulfilled)", None),
    ],
)
def test_what_waits_for_an_array_waits_for_the_job_that_goes_on_for_a_task_too(
    tmp_path: Path, old: str, dependency: str, new: str | None
) -> None:
    program(tmp_path, "squeue", f"echo '80|{dependency}'")
    program(tmp_path, "scontrol", f'echo "$@" >>"{tmp_path}/calls"')
    assert shell(f"hand_on {old} 77", tmp_path).returncode == 0
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else None
    assert calls == (f"update JobId=80 Dependency={new}\n" if new else None)


def test_of_an_array_the_first_failure_counts_then_what_has_not_ended(tmp_path: Path) -> None:
    states = {
        "COMPLETED\nPENDING\nFAILED": "FAILED",
        "COMPLETED\nRUNNING\nPENDING": "RUNNING",
        "COMPLETED": "COMPLETED",
    }
    for lines, state in states.items():
        assert shell(f"printf '{lines}\\n' | worst_state", tmp_path).stdout == f"{state}\n"


def test_after_an_array_comes_after_the_jobs_that_go_on_for_its_tasks(tmp_path: Path) -> None:
    program(tmp_path, "scontrol", 'echo "JobId=$4 JobState=RUNNING Reason=None"')
    (tmp_path / ".chains").mkdir()
    (tmp_path / ".chains" / "12_3").write_text("77\n")
    (tmp_path / ".chains" / "77").write_text("78\n")
    assert shell("latest_jobs 12", tmp_path).stdout == "12:78\n"


@pytest.mark.parametrize(
    ("numbers", "words"), [([0, 1, 2, 3, 7], "0-3,7"), ([5], "5"), ([], ""), ([1, 3], "1,3")]
)
def test_numbers_are_written_as_slurm_writes_them(numbers: list[int], words: str) -> None:
    assert ranges(numbers) == words


def test_cells_beyond_the_largest_array_are_further_arrays_with_the_same_digits() -> None:
    assert cells.arrays([0, 1, 999, 1000, 1002], 1000) == "0:0-1,999:cell_%a 1000:0,2:cell_1%3a"
    assert cells.arrays([12345], 1000) == "12000:345:cell_12%3a"
    assert cells.arrays([0, 25], 10) == "0:0:cell_%a 20:5:cell_2%1a"
    assert cells.arrays([3], 1) == "3:0:cell_3"


@pytest.mark.parametrize(
    ("most", "size"), [(1001, 1000), (4_000_001, 1000), (1000, 1000), (999, 100), (5, 1)]
)
def test_an_array_is_no_larger_than_the_cluster_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, size: int
) -> None:
    program(tmp_path, "scontrol", f"echo 'MaxArraySize            = {most}'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert cells.block_size(5000) == size


def test_a_cluster_without_arrays_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "scontrol", "echo 'MaxArraySize            = 0'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="--local"):
        cells.block_size(2)


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    """iridis/ of a clone from which two cells of a sweep were submitted, the second in array 31."""
    run = tmp_path / "iridis" / "sweep" / "run_0"
    run.mkdir(parents=True)
    folders = [tmp_path.resolve() / "exps" / name for name in ("first", "second")]
    entries = [{"number": 1000 * n, "experiment": str(folder)} for n, folder in enumerate(folders)]
    write_json(run / "cells.json", {"cells": entries})
    (run / "arrays.txt").write_text("30 0\n31 1000\n")
    return tmp_path / "iridis"


def test_tasks_are_known_by_their_experiments(submitted: Path, tmp_path: Path) -> None:
    first, second = (tmp_path.resolve() / "exps" / name for name in ("first", "second"))
    assert experiments(submitted, ["31"]) == {"31_0": second}
    assert experiments(submitted, ["30", "31"]) == {"30_0": first, "31_0": second}
    assert experiments(submitted, ["32"]) == {}


def test_a_task_that_waits_is_shown_with_its_experiment(
    submitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "PACKAGES", submitted)
    (tmp_path / "exps").mkdir()
    write_queue(tmp_path / "bin", monkeypatch, "31_0|PENDING|Priority|31|N/A|sweep-tried\n")
    place = submitted / "sweep" / "run_0" / "cell_1000"
    place.mkdir()
    (place / "experiment.txt").write_text(f"{tmp_path.resolve() / 'exps' / 'second'}\n")
    assert "second: job 31_0 waits (Priority)" in said([str(tmp_path / "exps")], capsys)


def test_a_job_is_found_by_the_mark_of_its_folder_whoever_submitted_it(
    submitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "IRIDIS", submitted)
    single = tmp_path / "exps" / "single"
    program(
        tmp_path,
        "squeue",
        f"echo '30_0|sweep-tried'; echo '7|train-base2-x-{mark_of(single)}'; echo '8|other'",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert cells.queue() == {mark_of(single): "7", mark_of(tmp_path.resolve() / "exps" / "first"): "30_0"}


def test_the_last_start_of_a_cell_tells_why_it_failed(submitted: Path, tmp_path: Path) -> None:
    place, folder = submitted / "sweep" / "run_0" / "cell_0", tmp_path / "exps" / "first"
    place.mkdir()
    (place / "experiment.txt").write_text(f"{folder}\n")
    for number, kind in enumerate((Kind.CRASHED, Kind.REFUSED)):
        write_json(place / f"outcome_30_0.{number}.json", ended(kind, f"{kind}!").as_json())
        os.utime(place / f"outcome_30_0.{number}.json", (number, number))
    assert failures(submitted) == {folder: "refused!"}
    write_json(place / "outcome_30_0.2.json", ended(Kind.STOPPED, "time limit").as_json())
    assert failures(submitted) == {}


def test_an_array_that_slurm_has_forgotten_is_judged_by_its_own_experiments(
    submitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "IRIDIS", submitted)
    links, folder = tmp_path / "links", tmp_path / "exps" / "first"
    assert cells.ended("30", links) == "UNFINISHED"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"args": {"iterations": 2}}))
    assert (cells.ended("30", links), cells.ended("31", links)) == ("COMPLETED", "UNFINISHED")
    links.mkdir()
    (links / "31_0").write_text("77\n")
    assert cells.ended("31", links) == "COMPLETED"


@pytest.mark.parametrize(
    ("name", "tasks"), [("sweep-tried", ["31_0", "31_1"]), ("train-base1-x-0a", ["31_0"]), ("31_1", ["31_1"])]
)
def test_the_name_of_a_sweep_means_also_those_of_its_tasks_that_have_begun(
    clone: Path, tmp_path: Path, name: str, tasks: list[str]
) -> None:
    run = clone / "iridis" / "sweep" / "run_0"
    run.mkdir(parents=True, exist_ok=True)
    (run / "arrays.txt").write_text("31 0\n")
    for each in ("sbatch", "sinfo", "scancel"):
        program(tmp_path, each, "true")
    program(tmp_path, "squeue", "echo '31_0|train-base1-x-0a|(null)'; echo '31_1|sweep-tried|(null)'")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = call("bash", clone / "iridis" / "cancel.sh", "--dry-run", name, PATH=path)
    assert sorted(line.split()[2] for line in done.stdout.splitlines()) == tasks, done.stderr


def test_a_dry_run_shows_commands_of_the_first_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    file = tmp_path / "tried.json"
    file.write_text(json.dumps({"flags": {"dataset": "stdlib"}, "seeds": [*range(12)]}))
    cells.main([str(file), "--no-data"])
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("would train: ")]
    assert shown[0].startswith("would train: cell 0 (tried seed=0): python main.py --")
    assert shown[cells.SHOWN :] == ["would train: 2 more cells"]
