"""A sweep is one array whose tasks chain, requeue and resume each by itself; nothing is lost or run twice."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from optim.names import SUMMARY
from tests.programs import STOPPED
from tests.slurm.cluster import search_path, wait_until
from tests.slurm.jobs import (
    ACC_STEPS,
    PATIENCE,
    SLOW,
    STEADY,
    Outcome,
    Site,
    error_lines,
    is_contiguous,
    logs,
)

STEPS = 30
FLAGS = {
    "dataset": "openwebtext2",
    "vocab_size": 256,
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "sequence_length": 32,
    "batch_size": 4,
    "acc_steps": ACC_STEPS,
    "iterations": STEPS,
    "eval_freq": 0,
    "log_freq": 1,
    "save_checkpoint_freq": 10,
    "device": "cpu",
    "seed": 0,
}
BAD = {"label": "bad", "lr": 0.5, "device": "cuda"}  # of which there is none; only main.py looks


@dataclass
class Sweep:
    """A sweep file on the cluster, with the array that it was submitted as."""

    site: Site
    file: Path
    entries: Sequence[dict[str, Any]]
    outcome: Outcome | None = None

    def submit(self, *words: str, **env: str) -> str:
        """Id of the array."""
        self.outcome = self.site.submit("sweep", str(self.file), *words, **env)
        return self.outcome.job

    def call(self, *words: str, **env: str) -> Outcome:
        return self.site.call("sweep", str(self.file), *words, **env)

    @property
    def run(self) -> Path:
        assert self.outcome is not None
        return self.outcome.run_dir

    def folder(self, number: int) -> Path:
        """A cell's experiment."""
        return Path((self.run / f"cell_{number}" / "experiment.txt").read_text().strip())

    def ledger(self, number: int) -> list[dict[str, Any]]:
        path = self.folder(number) / "segments.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def edges(self) -> dict[int, list[tuple[int, int]]]:
        """First and last step of each segment, by cell."""
        return {
            n: [(row["start_step"], row["end_step"]) for row in self.ledger(n)]
            for n in range(len(self.entries))
        }

    def step(self, number: int) -> int:
        """The last one that a cell has logged, -1 before the first."""
        path = self.folder(number) / "metrics.jsonl"
        lines = path.read_bytes().splitlines(True) if path.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith(b"\n")), default=-1)

    def wait_for_step(self, step: int, numbers: Sequence[int]) -> None:
        wait_until(lambda: all(self.step(n) >= step for n in numbers), PATIENCE, f"step {step} of {numbers}")

    def restarts(self, array: str) -> dict[int, int]:
        return {n: int(self.site.show(f"{array}_{n}", "Restarts") or 0) for n, _ in enumerate(self.entries)}

    def wait(self, array: str) -> None:
        """Until no task is in the queue any more, nor a job that goes on for one."""
        try:
            wait_until(
                lambda: self.site.queue("%i", "-r", f"--jobs={array}") == [], PATIENCE, f"the end of {array}"
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        return "\n".join(map(logs, sorted(self.run.glob("cell_*"))))


def sweep(site: Site, entries: Sequence[dict[str, Any]], **content: Any) -> Sweep:
    file = site.results.with_name("a sweep.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"name": "tried", "flags": FLAGS, "list": list(entries), **content}))
    return Sweep(site, file, entries)


def rates(count: int) -> list[dict[str, Any]]:
    return [{"label": f"rate {n}", "lr": 1e-3 * (n + 1)} for n in range(count)]


def on(site: Site, array: str, node: str) -> list[int]:
    """The tasks of an array that run on a node."""
    rows = site.queue("%i", f"--jobs={array}", f"--nodelist={node}", "--states=RUNNING")
    return sorted(int(row.partition("_")[2]) for row in rows)


def take(site: Site, cpus: int, node: str, command: str) -> str:
    """Id of a job that preempts those of lower partitions."""
    words = (
        "--partition=ecsstudents_l4",
        f"--nodelist={node}",
        f"--cpus-per-task={cpus}",
        f"--wrap={command}",
    )
    return site.cluster.run("sbatch", "--parsable", "--output=/dev/null", *words).stdout.strip()


def test_of_12_cells_with_two_preempted_one_bad_and_a_node_lost_11_finish_and_one_is_named(
    site: Site,
) -> None:
    site.pace(SLOW)
    tried = sweep(site, [*rates(11), BAD])
    half = take(site, 8, "n1", "sleep 1000")  # so that tasks begin on both nodes
    array = tried.submit(PARTITION="scavenger_l4", CPUS="1")
    good = range(11)
    tried.wait_for_step(1, good)
    before = set(on(site, array, "n1"))
    take(site, 8 - len(before) + 2, "n1", "sleep 1")
    wait_until(lambda: sum(tried.restarts(array).values()) >= 1, PATIENCE, "the preemption")
    tried.wait_for_step(3, good)
    preempted = {n for n, times in tried.restarts(array).items() if times}
    assert len(preempted) == 2 and preempted <= before
    site.scancel(half)
    site.pace(4)  # those that the node leaves behind are not to finish before SLURM has given it up
    lost = set(on(site, array, "n2"))
    site.cluster.kill("n2")
    try:
        wait_until(
            lambda: all(len(tried.ledger(n)) > 1 + (n in preempted) for n in lost),
            PATIENCE,
            "starts elsewhere",
        )
        site.pace(0)
        tried.wait(array)
    finally:
        site.cluster.start_node("n2")
    assert lost and [n for n in good if not (tried.folder(n) / SUMMARY).exists()] == [], tried.logs()
    starts = {n: 1 + (n in preempted) + (n in lost) for n in good}
    assert {n: len(tried.ledger(n)) for n in good} == starts, tried.logs()
    assert {row["job_id"] for n in good for row in tried.ledger(n)} == {f"{array}_{n}" for n in good}
    assert all(is_contiguous(tried.ledger(n), STEPS) for n in good), tried.edges()
    assert site.show(f"{array}_11", "JobState") == "FAILED" and site.show(f"{array}_11", "Restarts") == "0"
    (line,) = error_lines(tried.run / "cell_11")
    assert line.startswith("error: the chain stops: ") and "CUDA" in line
    again = tried.call("--dry-run")
    assert "12 cells: 11 finished, 1 to do" in again.err and "--array=11 " in again.out, again.err
    assert f"cell 11 (bad): {line.removeprefix('error: the chain stops: ')}" in again.err


def test_a_task_that_requeues_itself_leaves_its_siblings_alone(site: Site) -> None:
    site.pace(STEADY)
    tried = sweep(site, rates(3))
    array = tried.submit("--max-running", "3")
    tried.wait_for_step(2, range(3))
    last = f"{array}_2"
    assert site.show(last, "JobId") == array  # by whose SLURM_JOB_ID the whole array would be meant
    site.cluster.run("scancel", "--batch", "--signal=USR1", last)  # as before a time limit
    wait_until(lambda: site.show(last, "Restarts") == "1", PATIENCE, "the requeue")
    assert tried.restarts(array) == {0: 0, 1: 0, 2: 1}
    site.pace(0)
    tried.wait(array)
    assert [len(tried.ledger(n)) for n in range(3)] == [1, 1, 2], tried.logs()
    assert is_contiguous(tried.ledger(2), STEPS) and tried.ledger(2)[0]["reason"] == "time limit"
    assert tried.restarts(array) == {0: 0, 1: 0, 2: 1}


def test_where_a_task_goes_on_in_another_job_what_waits_for_the_array_waits_for_that_too(site: Site) -> None:
    site.pace(STEADY)
    tried = sweep(site, rates(2))
    array = tried.submit(CHAIN_BY="resubmit")
    tried.wait_for_step(2, range(2))
    waiting = site.cluster.run(
        "sbatch", "--parsable", f"--dependency=afterok:{array}", "--output=/dev/null", "--wrap=true"
    ).stdout.strip()
    site.cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    successor = tried.run / "cell_1"
    wait_until(lambda: len(list(successor.glob("slurm_*.out"))) == 2, PATIENCE, "the next job")
    (job,) = {path.stem.removeprefix("slurm_") for path in successor.glob("slurm_*.out")} - {f"{array}_1"}
    assert f":{job}" in site.show(waiting, "Dependency") or site.show(waiting, "JobState") == "COMPLETED"
    assert "nothing to submit" in tried.call().out  # one cell is a task, the other a job of its own
    stopped = site.cluster.run("bash", str(site.repo / "iridis" / "cancel.sh"), array, **site.environment())
    assert {f"cancelled: {each}" for each in (f"{array}_0", job)} <= {
        line.rpartition(" (")[0] for line in stopped.stdout.splitlines()
    }, stopped.stderr
    tried.wait(array)
    site.scancel(job, waiting)


def test_an_ordinary_job_is_refused_while_a_task_waits_for_its_experiment(site: Site) -> None:
    tried = sweep(site, rates(2), flags={**FLAGS, "warmup_percent": 0.02})
    array = tried.submit(SBATCH_OPTIONS="--hold")
    words = shlex.split((tried.run / "cell_1" / "words").read_text().replace("\0", "\n"))
    again = site.call("base-train", "base", "1", "--", *words)
    assert again.code == 2 and f"in the queue already: job {array}_1;" in again.err, again.out + again.err
    site.scancel(array)


@pytest.fixture
def counted(site: Site, tmp_path: Path) -> Path:
    """SLURM's programs that write down each call, into the file `calls` beside them."""
    folder = tmp_path / "counted"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sinfo", "scancel", "sacct"):
        program = folder / name
        real = shutil.which(name, path=search_path())
        program.write_text(f'#!/bin/sh\necho {name} >>"{folder}/calls"\nexec {real} "$@"\n')
        program.chmod(0o755)
    site.env |= {"PATH": f"{folder}:{search_path()}", "VENV_DIR": sys.prefix, "SBATCH_OPTIONS": "--hold"}
    return folder / "calls"


def test_500_cells_are_submitted_shown_and_cancelled_in_seconds_and_with_few_calls(
    site: Site, counted: Path
) -> None:
    tried = sweep(site, rates(1), list=[], grid={"lr": [1e-5 * (n + 1) for n in range(500)]})
    content = json.loads(tried.file.read_text())
    del content["list"]
    tried.file.write_text(json.dumps(content))
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    array = tried.submit("--max-running", "20")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 10
    assert len(counted.read_text().split()) <= 5
    counted.unlink()
    shown = site.cluster.run(
        *(sys.executable, str(site.repo / "status.py"), "--sweep", str(tried.file)), **site.environment()
    )
    assert "500 queued" in shown.stdout, shown.stdout[-500:] + shown.stderr
    assert counted.read_text().split() == ["squeue"]
    stopped = site.cluster.run("bash", str(site.repo / "iridis" / "cancel.sh"), "sweep", **site.environment())
    assert stopped.stdout.count("cancelled: ") == 500, stopped.stderr
    tried.wait(array)


def test_local_cells_stop_at_ctrl_c_and_go_on_with_the_same_command(site: Site) -> None:
    site.pace(STEADY)
    tried = sweep(site, [*rates(2), BAD])
    first = site.start("sweep", str(tried.file), "--local", "--max-running", "2")
    found: list[Path] = []

    def has_begun() -> bool:
        found[:] = site.results.glob("*/*/*/metrics.jsonl")
        return len(found) == 2 and all(path.read_text().count("\n") > 2 for path in found)

    wait_until(has_begun, PATIENCE, "the first steps")
    os.killpg(first.pid, signal.SIGINT)
    out, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == STOPPED and "the same command goes on with 3" in out, out + err
    site.pace(0)
    second = tried.call("--local")
    assert second.code == 1 and "=== sweep tried: 2 of 3 cells are finished" in second.out, second.err
    assert [line for line in second.err.splitlines() if "cell 2 (bad)" in line and "CUDA" in line], second.err
    for path in found:
        rows = [json.loads(line) for line in (path.parent / "segments.jsonl").read_text().splitlines()]
        assert len(rows) == 2 and is_contiguous(rows, STEPS)
