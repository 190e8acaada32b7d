"""A training in several jobs is the training in one: time limits, preemption, a lost node, requeues.

What takes minutes of a cluster's time runs beside the other tests of this module: `chains` starts it, the
last tests wait for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from optim.lock import TAKEN_OVER
from optim.selftest import differing
from tests.programs import final_state
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.jobs import PATIENCE, SLOW, STEADY, Outcome, Site, is_contiguous, logs, tiny

STEPS = 80  # three jobs of a minute at the slow pace
TRAINING = ("--name", "run", "--", *tiny(iterations=STEPS, save_checkpoint_freq=20))  # with dropout

PREEMPTIBLE = {"PARTITION": "scavenger_l4", "SBATCH_OPTIONS": "--nodelist=n1", "CPUS": "8"}


@dataclass
class Chains:
    """What runs in the background, each with a folder of results of its own."""

    unbroken: tuple[Path, subprocess.Popen[str]]
    resubmitting: tuple[Site, Outcome]
    requeueing: tuple[Site, Outcome]

    def weights(self) -> dict[str, Any]:
        """What a training that nothing stopped ended with."""
        results, training = self.unbroken
        out, err = training.communicate(timeout=PATIENCE)
        assert training.returncode == 0, out + err
        return final_state(results)


@pytest.fixture(scope="module")
def chains(cluster: Cluster, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chains]:
    base = tmp_path_factory.mktemp("chains")
    limited = {"TIME_LIMIT": "1", "SBATCH_OPTIONS": "--nodelist=n2"}
    started = []
    for kind in ("resubmit", "requeue"):
        site = Site(cluster, repo, base / kind, {**limited, "CHAIN_BY": kind})
        site.pace(SLOW)
        started.append((site, site.submit("adm-train", *TRAINING)))
    training = Site(cluster, repo, base / "unbroken").start("adm-train", "--local", *TRAINING)
    yield Chains((base / "unbroken", training), *started)
    if training.poll() is None:
        os.killpg(training.pid, signal.SIGKILL)
        training.communicate()


def test_after_a_node_is_lost_its_orphan_gives_way_and_the_chain_ends_with_the_same_weights(
    site: Site, chains: Chains
) -> None:
    site.pace(SLOW)
    with site.only_node("n1"):
        outcome = site.submit("adm-train", *TRAINING)
        site.wait_for_step(9)
    site.cluster.kill("n1")
    try:
        wait_until(
            lambda: [row["restart"] for row in site.ledger()] == [0, 1], PATIENCE, "a start on the other node"
        )
        assert site.show(outcome.job, "NodeList") == "n2"
        site.wait_for_step(site.ledger()[-1]["start_step"] + 3)
        site.cluster.run("scancel", "--batch", "--signal=USR1", outcome.job)  # as before a time limit
        site.pace(0)
        site.wait(outcome)
    finally:
        site.cluster.start_node("n1")
    assert TAKEN_OVER in logs(outcome.run_dir)
    assert differing(final_state(site.results), chains.weights()) == [], logs(outcome.run_dir)
    assert len({row["job_id"] for row in site.ledger()}) == 2


def preempt(site: Site) -> None:
    """Have a job of a higher partition take the whole of n1, once the chain has trained there a little."""
    site.wait_for_step(site.ledger()[-1]["start_step"] + 3)
    site.take_node("n1")


def test_a_job_preempted_three_times_finishes_with_the_weights_of_an_unbroken_run(
    site: Site, chains: Chains
) -> None:
    site.pace(STEADY)
    outcome = site.submit("adm-train", *TRAINING, **PREEMPTIBLE)
    for time in range(3):
        wait_until(lambda starts=time + 1: len(site.ledger()) == starts, PATIENCE, f"start {time}")
        preempt(site)
        wait_until(
            lambda restarts=time + 1: site.show(outcome.job, "Restarts") == str(restarts),
            PATIENCE,
            f"preemption {time + 1}",
        )
    site.pace(0)
    site.wait(outcome)
    assert differing(final_state(site.results), chains.weights()) == [], logs(outcome.run_dir)
    assert {row["job_id"] for row in site.ledger()} == {outcome.job}
    assert [row["restart"] for row in site.ledger()] == [0, 1, 2, 3]
    assert is_contiguous(site.ledger(), STEPS)


def test_a_job_preempted_with_grace_goes_on_with_no_step_lost(site: Site) -> None:
    site.pace(STEADY)
    outcome = site.submit("adm-train", *TRAINING, **{**PREEMPTIBLE, "PARTITION": "scavenger_4a100"})
    wait_until(lambda: len(site.ledger()) == 1, PATIENCE, "the start")
    preempt(site)
    wait_until(lambda: site.show(outcome.job, "Restarts") == "1", PATIENCE, "the preemption")
    site.pace(0)
    site.wait(outcome)
    assert len(site.ledger()) == 2 and is_contiguous(site.ledger(), STEPS), logs(outcome.run_dir)


def test_a_chain_over_time_limits_finishes_alone_with_the_weights_of_an_unbroken_run(chains: Chains) -> None:
    site, outcome = chains.resubmitting
    site.wait(outcome)
    ledger = site.ledger()
    assert len(ledger) >= 3
    assert len({row["job_id"] for row in ledger}) == len(ledger)
    # a node that is slow to wake a job script leaves the end to the program itself
    assert {row["reason"] for row in ledger[:-1]} <= {"time limit", "end of the job"}
    assert is_contiguous(ledger, STEPS)
    assert differing(final_state(site.results), chains.weights()) == [], logs(outcome.run_dir)


def test_a_chain_by_requeue_keeps_its_job_id_and_ends_with_the_weights_of_an_unbroken_run(
    chains: Chains,
) -> None:
    site, outcome = chains.requeueing
    site.wait(outcome)
    ledger = site.ledger()
    assert len(ledger) >= 2
    assert {row["job_id"] for row in ledger} == {outcome.job}
    assert is_contiguous(ledger, STEPS)
    assert differing(final_state(site.results), chains.weights()) == [], logs(outcome.run_dir)
