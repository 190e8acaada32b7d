"""A job hands its chain on whatever stands in the way: a hanging step, a refusing sbatch, a lost folder, a
user's profile.

What takes the minutes of a time limit runs beside the other tests: `hanging` starts it, the last test waits
for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.jobs import PATIENCE, STEADY, Outcome, Site, error_lines, is_contiguous, logs, tiny

STEPS = 12
LONG = ("--name", "run", "--", *tiny(model=None, iterations=600, save_checkpoint_freq=None))
OTHER_PARTITION = {"PARTITION": "scavenger_l4", "SBATCH_OPTIONS": "--nodelist=n1", "CPUS": "8"}


@pytest.fixture(scope="module", autouse=True)
def hanging(cluster: Cluster, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Outcome]:
    """A training whose first job meets a step that never ends."""
    env = {"TIME_LIMIT": "1", "SBATCH_OPTIONS": "--nodelist=n2", "HANG_AT": "2"}
    site = Site(cluster, repo, tmp_path_factory.mktemp("hanging") / "results", env)
    return site, site.submit("lncot-train", "--name", "run", "--", *tiny(model=None, iterations=STEPS))


@pytest.fixture
def site(site: Site) -> Site:
    """Its trainings are in no hurry to end."""
    site.pace(STEADY)
    return site


@contextmanager
def partition(site: Site, name: str, change: str, back: str) -> Iterator[None]:
    """A partition with other rules for a while."""
    site.cluster.run("scontrol", "update", f"PartitionName={name}", change)
    try:
        yield
    finally:
        site.cluster.run("scontrol", "update", f"PartitionName={name}", back)


def signal_before_the_limit(site: Site, job: str) -> None:
    site.cluster.run("scancel", "--batch", "--signal=USR1", job)


def was_refused(outcome: Outcome) -> bool:
    return "sbatch: error" in logs(outcome.run_dir)


def finish(site: Site, outcome: Outcome) -> None:
    """Let the chain go on until its next job trains, then end it."""
    rows = len(site.ledger())
    wait_until(lambda: len(site.ledger()) > rows, PATIENCE, f"the next job\n{logs(outcome.run_dir)}")
    site.scancel(*site.queue("%i", f"--name={outcome.job_name}"))


def test_a_job_preempted_while_sbatch_refuses_its_successor_leaves_its_restart_in_the_queue(
    site: Site,
) -> None:
    outcome = site.submit("lncot-train", *LONG, **OTHER_PARTITION)
    site.wait_for_step(9)
    with partition(site, "scavenger_l4", "State=INACTIVE", "State=UP"):
        signal_before_the_limit(site, outcome.job)
        wait_until(lambda: was_refused(outcome), PATIENCE, f"a refusal\n{logs(outcome.run_dir)}")
        site.cluster.run(
            "sbatch",
            "--partition=ecsstudents_l4",
            "--nodelist=n1",
            "--cpus-per-task=16",
            "--output=/dev/null",
            "--wrap=sleep 1",
        )
        wait_until(
            lambda: site.show(outcome.job, "Restarts") == "1",
            PATIENCE,
            f"the preemption\n{logs(outcome.run_dir)}",
        )
    finish(site, outcome)
    assert [(row["job_id"], row["restart"]) for row in site.ledger()] == [(outcome.job, 0), (outcome.job, 1)]
    assert error_lines(outcome.run_dir) == ["error: the chain stops: cancelled"]


def test_where_sbatch_goes_on_refusing_the_job_is_requeued(site: Site) -> None:
    outcome = site.submit("lncot-train", *LONG, **OTHER_PARTITION)
    site.wait_for_step(9)
    with partition(site, "scavenger_l4", "State=INACTIVE", "State=UP"):
        signal_before_the_limit(site, outcome.job)
        wait_until(
            lambda: site.show(outcome.job, "Restarts") == "1",
            PATIENCE,
            f"the requeue\n{logs(outcome.run_dir)}",
        )
    finish(site, outcome)
    assert [(row["job_id"], row["restart"]) for row in site.ledger()] == [(outcome.job, 0), (outcome.job, 1)]


def test_where_the_partition_s_limit_was_lowered_the_next_job_asks_for_no_more_than_that(site: Site) -> None:
    outcome = site.submit("lncot-train", *LONG, PARTITION="scavenger_4a100")
    site.wait_for_step(9)
    with partition(site, "scavenger_4a100", "MaxTime=2", "MaxTime=12:00:00"):
        signal_before_the_limit(site, outcome.job)
        wait_until(
            lambda: outcome.job not in site.queue(), PATIENCE, f"the job's end\n{logs(outcome.run_dir)}"
        )
        finish(site, outcome)
    assert len({row["job_id"] for row in site.ledger()}) == 2
    assert "warning: partition scavenger_4a100 allows 2:00 by now" in logs(outcome.run_dir)


def test_a_chain_whose_run_folder_was_removed_goes_on_and_tells_in_a_new_one(site: Site) -> None:
    outcome = site.submit("lncot-train", *LONG)
    site.wait_for_step(9)
    shutil.rmtree(outcome.run_dir)
    signal_before_the_limit(site, outcome.job)
    wait_until(lambda: outcome.job not in site.queue(), PATIENCE, "the job's end")
    finish(site, outcome)
    first, second = site.ledger()
    assert first["reason"] == "time limit" and second["start_step"] == first["reached"]
    assert f"slurm_{second['job_id']}.out" in {path.name for path in outcome.run_dir.iterdir()}


def test_what_a_user_s_profile_sets_for_commands_by_hand_changes_nothing(site: Site, tmp_path: Path) -> None:
    greeting = tmp_path / "bin" / "sbatch"
    greeting.parent.mkdir()
    greeting.write_text(f'#!/bin/sh\necho Welcome, you have 3 projects\nexec {shutil.which("sbatch")} "$@"\n')
    greeting.chmod(0o755)
    profile = {
        "SBATCH_WAIT": "1",
        "SBATCH_ARRAY_INX": "1-2",
        "SBATCH_GRES": "gpu:9",
        "SQUEUE_STATES": "FAILED",
        "SINFO_PARTITION": "none",
        "PATH": f"{greeting.parent}:{site.cluster._environment()['PATH']}",
    }
    outcome = site.submit("lncot-train", *LONG, **{**profile, "SBATCH_OPTIONS": "--hold"})
    again = site.call("lncot-train", *LONG, **profile)
    try:
        assert outcome.job.isdigit() and site.queue("%i", f"--name={outcome.job_name}") == [outcome.job]
        assert f"in the queue already: job {outcome.job}" in again.err
    finally:
        site.scancel(outcome.job)


def test_a_step_that_outlasts_the_signal_s_lead_is_killed_and_the_chain_goes_on(
    hanging: tuple[Site, Outcome],
) -> None:
    site, outcome = hanging
    site.wait(outcome)
    ledger = site.ledger()
    killed = ("time limit within a step or save", "stopped")
    assert killed in [(row["reason"], row["state"]) for row in ledger], logs(outcome.run_dir)
    assert is_contiguous(ledger, STEPS) and ledger[-1]["chain"] == "finished"
