"""Jobs of genomes that are started again, for whatever reason, end with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("msprime")

from tests.genomes import contents
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.jobs import PATIENCE, Outcome, Site, logs

COUNT = 60  # simulations: a set has shards of 16, 16, 16 and 6 of them for training, and one of 6
HOLD = {"genomes-simulate": 15, "genomes-preprocess": 18}  # simulations of each start
SIMULATE = "--scenario constant --n_individuals 3 --sequence_length 20000 --num_processes 1"
PREPARE = "--sequence_length 20000 --simplify_first_n_samples 6 --num_pairs 4 --num_workers 1"
SIMULATION = ("mine", "--", *SIMULATE.split(), "--num_samples", str(COUNT))
PREPARATION = ("--", *PREPARE.split())


WAITS = "this job was started again, and waits until that ends"


def said(job: Outcome) -> str:
    return (job.run_dir / f"slurm_{job.job}.out").read_text()


@dataclass
class Disturbed:
    """A simulation and a preparation that ran beside each other, and what undisturbed ones have made.

    data: of the disturbed simulation. written: when the first shard was, before the last restart.
    """

    calm: Path
    data: Path
    jobs: list[Outcome]
    written: int

    @property
    def shards(self) -> Path:
        return self.calm / "set" / "train"

    def first_written(self) -> int:
        return (self.shards / "shard_00000.bin").stat().st_mtime_ns

    def is_amid(self, restarts: int) -> bool:
        """Whether both jobs have been held as often, plus one."""
        files = len(list(self.data.rglob("ts_*.trees")))
        complete = len(list(self.shards.glob("shard_*.json")))
        is_writing = bool(list(self.shards.glob(".shard_*.tmp")))
        return files == HOLD["genomes-simulate"] * (restarts + 1) and complete == restarts + 1 and is_writing


def processes_of(job: str) -> list[int]:
    """Those of a job on this machine, with the one that SLURM watches it by."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_mine = f"\0SLURM_JOB_ID={job}\0".encode() in b"\0" + (process / "environ").read_bytes()
            if is_mine or (process / "cmdline").read_bytes().startswith(f"slurmstepd: [{job}.".encode()):
                found.append(int(process.name))
    return found


def end_all(processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def signal_time_limit(site: Site, jobs: list[Outcome]) -> None:
    """As SLURM does before a time limit; the jobs then ask to be started again."""
    for job in jobs:
        site.cluster.run("scancel", "--batch", "--signal=USR1", job.job)


def wait_for_restart(site: Site, jobs: list[Outcome], number: int) -> None:
    for job in jobs:
        wait_until(
            lambda job=job.job: site.show(job, "Restarts") == str(number),
            PATIENCE,
            f"restart {number}\n{logs(job.run_dir)}",
        )


def disturb(site: Site, found: Disturbed, holds: list[Path]) -> None:
    """Both jobs in the middle of their work: the time limit comes, another job takes their place, and their
    node is lost, on which they go on until the node ends.
    """

    def wait_for_work(restarts: int) -> None:
        wait_until(lambda: found.is_amid(restarts), PATIENCE, f"work after {restarts} restarts")

    wait_for_work(0)
    signal_time_limit(site, found.jobs)
    wait_for_restart(site, found.jobs, 1)
    wait_for_work(1)
    site.take_node("n1")
    wait_for_restart(site, found.jobs, 2)
    wait_for_work(2)
    found.written = found.first_written()
    for hold in holds:
        hold.unlink()
    orphans = [process for job in found.jobs for process in processes_of(job.job)]
    site.cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    site.cluster.kill("n1")
    wait_for_restart(site, found.jobs, 3)
    for job in found.jobs:
        wait_until(lambda job=job: WAITS in said(job), PATIENCE, f"another start\n{logs(job.run_dir)}")
    end_all(orphans)


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    folder = tmp_path_factory.mktemp("genomes")
    calm, data = folder / "calm", folder / "data"
    site = Site(cluster, repo, folder / "results", {"PARTITION": "scavenger_l4", "DATA_DIR": str(calm)})
    for package, words in (
        ("genomes-simulate", SIMULATION),
        ("genomes-preprocess", ("mine", "calm_set", *PREPARATION)),
    ):
        done = site.call(package, "--local", *words)
        assert done.code == 0, done.out + done.err
    holds = {package: folder / f"{package}.hold" for package in HOLD}
    for package, hold in holds.items():
        hold.write_text(str(HOLD[package]))

    def submit(package: str, *words: str, **env: str) -> Outcome:
        return site.submit(package, *words, HOLD=str(holds[package]), **env)

    with site.only_node("n1"):
        jobs = [
            submit("genomes-simulate", *SIMULATION, DATA_DIR=str(data)),
            submit("genomes-preprocess", "mine", "set", *PREPARATION),
        ]
        found = Disturbed(calm, data, jobs, 0)
        try:
            disturb(site, found, list(holds.values()))
            for job in jobs:
                site.wait(job)
        finally:
            if "n1" not in cluster.daemons:
                cluster.start_node("n1")
    return found


def test_a_simulation_whose_job_is_started_again_has_the_same_bytes(disturbed: Disturbed) -> None:
    made = contents(disturbed.data / "genomes" / "mine")
    assert made == contents(disturbed.calm / "genomes" / "mine")
    assert sum(name.endswith(".trees") for name in made) == COUNT
    assert (disturbed.jobs[0].run_dir / "done").exists()


def test_a_set_whose_job_is_started_again_has_the_same_bytes(disturbed: Disturbed) -> None:
    assert contents(disturbed.calm / "set") == contents(disturbed.calm / "calm_set")
    assert (disturbed.jobs[1].run_dir / "done").exists()


def test_what_was_complete_before_a_job_is_started_again_stays(disturbed: Disturbed) -> None:
    assert disturbed.first_written() == disturbed.written
    for count in range(0, COUNT, HOLD["genomes-simulate"]):
        assert f": {count} of {COUNT} simulations are there already\n" in said(disturbed.jobs[0])
