"""A chain that cannot go on stops by itself, says why in one line, and leaves nothing in the queue and
nothing damaged.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.order import SampleOrder
from optim.checkpoint import damage
from optim.names import numbered
from tests.programs import PEER, TINY
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.jobs import ACC_STEPS, PATIENCE, STEADY, Outcome, Site, error_lines, logs, tiny

SMALL = tiny(model=None, iterations=60)
CRASH_AT = 20  # steps done when the crash comes; the newest checkpoint is then of step 14


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A copy of the small dataset, for tests that harm it."""
    return Path(shutil.copytree(PEER / "datasets", tmp_path / "datasets")) / "openwebtext2"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def without_data(
    cluster: Cluster, repo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Site, Outcome]:
    """A job that was held until its data were gone, and the end of its chain, of which somebody is told."""
    folder = tmp_path_factory.mktemp("without_data")
    dataset = Path(shutil.copytree(PEER / "datasets", folder / "datasets")) / "openwebtext2"
    env = {
        "DATA_DIR": str(dataset.parent),
        "SBATCH_OPTIONS": "--hold",
        "NOTIFY_EMAIL": "somebody@example.org",
        "PATH": f"{cluster.folder}:{os.environ['PATH']}",
    }
    site = Site(cluster, repo, folder / "results", env)
    outcome = site.submit("lncot-train", "--name", "run", "--", *SMALL)
    shutil.rmtree(dataset)
    site.cluster.run("scontrol", "release", outcome.job)
    site.wait(outcome)
    return site, outcome


def spoil(dataset: Path, step: int) -> None:
    """Have the training meet a token outside its vocabulary in the step after `step`; meta.json does not
    know of it.
    """
    tokens = np.fromfile(dataset / "train.bin", dtype="<u2")
    length, samples = TINY["sequence_length"], TINY["batch_size"] * ACC_STEPS
    (window,) = SampleOrder((tokens.size - 1) // length, data_seed=0).windows(step * samples, 1)
    tokens[window * length + 5] = 60000
    tokens.tofile(dataset / "train.bin")
    sizes = {split: (dataset / f"{split}.bin").stat().st_size // 2 for split in ("train", "val")}
    (dataset / "meta.json").write_text(
        json.dumps(
            {"splits": {split: {"tokens": size, "largest_token": 255} for split, size in sizes.items()}}
        )
    )


def test_what_only_fails_on_the_node_stops_the_chain_with_one_line(
    without_data: tuple[Site, Outcome],
) -> None:
    _, outcome = without_data
    (line,) = error_lines(outcome.run_dir)
    assert line.startswith("error: the chain stops: ") and "is not prepared" in line
    assert len(list(outcome.run_dir.glob("slurm_*.err"))) == 1  # one job, no more


def test_a_stopped_chain_sends_one_mail_with_the_reason(without_data: tuple[Site, Outcome]) -> None:
    mail = (without_data[0].cluster.folder / "mails").read_text()
    assert mail.count(": stopped somebody@example.org") == 1
    assert "is not prepared" in mail


def test_damaged_data_stop_the_chain_in_one_line(site: Site, dataset: Path) -> None:
    spoil(dataset, CRASH_AT)
    outcome = site.submit("lncot-train", "--name", "run", "--", *SMALL, DATA_DIR=str(dataset.parent))
    site.wait(outcome)
    assert [(row["state"], row["reached"]) for row in site.ledger()] == [("failed", CRASH_AT)]
    (line,) = error_lines(outcome.run_dir)
    assert line.startswith("error: the chain stops: ") and "the data holds token 60000" in line


def test_a_crash_at_the_same_step_stops_the_chain_after_the_second_time(site: Site) -> None:
    outcome = site.submit("lncot-train", "--name", "run", "--", *SMALL, CRASH_AT=str(CRASH_AT))
    site.wait(outcome)
    ledger = site.ledger()
    assert [(row["state"], row["start_step"], row["reached"]) for row in ledger] == [
        ("failed", 0, CRASH_AT),
        ("failed", 14, CRASH_AT),
    ]
    assert ledger[-1]["chain"].startswith(f"stop: crashed at step {CRASH_AT} twice: IndexError"), logs(
        outcome.run_dir
    )
    assert [
        line.startswith(f"error: the chain stops: crashed at step {CRASH_AT} twice")
        for line in error_lines(outcome.run_dir)
    ] == [True]


def test_a_full_disk_stops_the_chain_in_one_line_and_leaves_the_last_checkpoint_intact(
    site: Site, small_disk: Path
) -> None:
    site.results = small_disk / "results"
    site.pace(STEADY)
    outcome = site.submit("lncot-train", "--name", "run", "--", *tiny(model=None, iterations=600))
    wait_until(lambda: len(numbered_there(site)) > 0, PATIENCE, "a checkpoint")
    with open(small_disk / "filler", "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):  # to the last byte
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    site.wait(outcome)
    assert len(error_lines(outcome.run_dir)) == 1, logs(outcome.run_dir)
    (line,) = error_lines(outcome.run_dir)
    assert line.startswith("error: the chain stops: ") and "No space left on device" in line
    newest = numbered_there(site)[0]
    assert damage(newest) is None


def numbered_there(site: Site) -> list[Path]:
    return [path for folder in site.results.glob("*/*/run") for path in numbered(folder)]


def test_chain_2_stops_after_two_jobs_and_says_so(site: Site) -> None:
    site.pace(STEADY)
    outcome = site.submit(
        "lncot-train", "--chain", "2", "--name", "run", "--", *tiny(model=None, iterations=600)
    )
    for segment in range(2):
        site.wait_for_step(3 + (site.ledger()[0]["end_step"] if segment else 0))
        (job,) = site.queue("%i", f"--name={outcome.job_name}")
        site.cluster.run("scancel", "--batch", "--signal=USR1", job)  # as before a time limit
        wait_until(lambda job=job: job not in site.queue(), PATIENCE, "the job's end")
    site.wait(outcome)
    assert len(site.ledger()) == 2
    (line,) = error_lines(outcome.run_dir)
    assert "the limit of --chain 2 jobs is reached (time limit)" in line


def test_a_cancelled_job_saves_and_has_no_successor(site: Site) -> None:
    site.pace(STEADY)
    outcome = site.submit("lncot-train", "--name", "run", "--", *tiny(model=None, iterations=600))
    site.wait_for_step(9)
    site.scancel(outcome.job)
    site.wait(outcome)
    (row,) = site.ledger()
    assert row["end_step"] == row["reached"] >= 9 and row["chain"] == "stop: cancelled", logs(outcome.run_dir)


def test_a_job_cancelled_before_its_training_began_has_no_successor(site: Site) -> None:
    outcome = site.submit(
        "lncot-train", "--name", "run", "--", *tiny(model=None, iterations=60), HEALTH_CHECK="1"
    )
    wait_until(lambda: site.show(outcome.job, "JobState") == "RUNNING", PATIENCE, "the start")
    site.scancel(outcome.job)
    site.wait(outcome)
    assert len(list(outcome.run_dir.glob("slurm_*.out"))) == 1, logs(outcome.run_dir)


def test_a_job_that_cannot_find_its_flags_says_that_the_chain_stops(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "flags.json"
    config.write_text("{}")
    outcome = site.submit(
        "lncot-train",
        "--name",
        "run",
        "--",
        *tiny(model=None, iterations=6),
        "--config",
        str(config),
        SBATCH_OPTIONS="--hold",
    )
    config.unlink()
    site.cluster.run("scontrol", "release", outcome.job)
    site.wait(outcome)
    assert any("the chain stops" in line for line in error_lines(outcome.run_dir)), logs(outcome.run_dir)
