"""An evaluation of several checkpoints of coalescence times that is killed, and its job called again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("msprime")

from tests.genomes import make_sets, saved
from tests.job_calls import call, job

LABELS = ("narrow", "broad")
# one test pair a part, so that there are many
FLAGS = ("--device", "cpu", "--replicates", "300", "--test_pairs", "6")
MEASURED = ("all", "scenarios", "train_mean", "test_examples", "itr")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of the job: two checkpoints of other weights, and a set of theirs."""
    base = tmp_path_factory.mktemp("evaluation")
    sets = make_sets(base / "genomes")
    found = []
    for seed, label in enumerate(LABELS):
        experiment = saved(base / "exps" / "set" / "tiny" / label, sets / "processed", seed)
        found += ["--checkpoint", f"{label}={experiment}"]
    return [*found, "--", *FLAGS]


def parts(scratch: Path) -> dict[str, int]:
    """When each part that is drawn was written."""
    return {str(path): path.stat().st_mtime_ns for path in scratch.rglob("tokens_*.npy")}


def killed(clone: Path, scratch: Path, words: list[str], wanted: int) -> dict[str, int]:
    """The parts that there are when the job, begun anew, has so many and it and all its processes are
    killed.
    """
    running = subprocess.Popen(
        ["bash", str(job(clone, "coalescence-eval")), "--local", *words],
        env={**os.environ, "USE_CONDA": "no", "SCRATCH_DIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while len(parts(scratch)) < wanted:
        assert running.poll() is None
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    time.sleep(0.3)  # a forked program ends a moment after the process that it stands for
    return parts(scratch)


def measured(run: Path) -> dict[str, Any]:
    """The numbers of each checkpoint in a run's folder."""
    found = {}
    for label in LABELS:
        summary = json.loads((run / label / "eval_summary_ckpt_3.json").read_text())
        found[label] = {name: summary[name] for name in MEASURED}
    return found


def newest_run(clone: Path) -> Path:
    runs = (clone / "iridis" / "coalescence-eval").glob("run_*")
    return max(runs, key=lambda path: int(path.name.removeprefix("run_")))


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
def test_a_killed_evaluation_goes_on_where_it_was_with_the_same_numbers(
    clone: Path, tmp_path: Path, words: list[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = call("bash", job(clone, "coalescence-eval"), "--local", *words, SCRATCH_DIR=str(whole))
    assert done.returncode == 0, done.stdout + done.stderr
    expected = measured(newest_run(clone))
    first = killed(clone, cut, words, 2)
    second = killed(clone, cut, words, 8)  # the first checkpoint has 6
    assert first.items() <= second.items()  # nothing is drawn twice
    done = call("bash", job(clone, "coalescence-eval"), "--local", *words, SCRATCH_DIR=str(cut))
    assert done.returncode == 0, done.stdout + done.stderr
    assert measured(newest_run(clone)) == expected
    assert not list(cut.rglob("draws-*")) and not list(whole.rglob("draws-*"))
