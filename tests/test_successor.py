"""How the shell of a job submits the next one, where SLURM's programs answer as they do on a bad day."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import ROOT

pytestmark = pytest.mark.slow
SCRIPT = """source iridis/train.sh
parse_options
PATH="$STUBS:$PATH" RETRY=0 EXPERIMENT="$STUBS/experiment" RUN_DIR="$STUBS/run" JOB_NAME=x PARTITION=p \
TIME_LIMIT=60
N_NODES=1 N_GPUS=0 CPUS=1 MEMORY=1G
echo $$ >"$STUBS/shell"
continue_chain "time limit"
"""


@pytest.fixture
def hand_over(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the end of job 5, with programs of SLURM whose shell code is given; the others fail."""

    def run(seconds_left: int = 600, **programs: str) -> subprocess.CompletedProcess[str]:
        for name in ("sbatch", "scontrol", "squeue", "scancel", "sinfo"):
            program = tmp_path / name
            reads = "cat >/dev/null" if name == "sbatch" else ":"
            program.write_text(
                f"#!/bin/sh\n{reads}\ncd '{tmp_path}'\necho {name} \"$@\""
                f" >>calls\n{programs.get(name, 'exit 1')}\n"
            )
            program.chmod(0o755)
        env = {
            "STUBS": str(tmp_path),
            "SLURM_JOB_ID": "5",
            "SLURM_JOB_END_TIME": str(int(time.time()) + seconds_left),
            "USE_CONDA": "no",
            "SCRATCH_DIR": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["bash", "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def calls(tmp_path: Path, what: str) -> int:
    return (tmp_path / "calls").read_text().count(what)


def test_a_controller_that_is_away_is_tried_until_it_is_back(
    hand_over: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = hand_over(sbatch="echo >>tries; [ $(wc -l <tries) -gt 12 ] && echo Welcome && echo 77")
    assert done.returncode == 0 and "job 77 goes on" in done.stdout, done.stderr
    assert calls(tmp_path, "sbatch --parsable") == 13 and (tmp_path / ".chains" / "5").read_text() == "77\n"


def test_where_nothing_is_taken_until_the_job_ends_the_chain_stops_in_a_line(
    hand_over: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = hand_over(seconds_left=8)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1, done.stderr
    assert errors[0].startswith("error: the chain stops: time limit, and sbatch refused the next job ")


def test_a_job_that_would_keep_a_limit_that_is_no_longer_allowed_is_not_requeued(
    hand_over: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = hand_over(seconds_left=3, sinfo="echo 30:00", scontrol="exit 0")
    assert done.returncode == 1 and "the chain stops" in done.stderr
    assert calls(tmp_path, "scontrol requeue") == 0


def test_a_job_that_is_cancelled_while_it_hands_over_takes_the_next_one_back(
    hand_over: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    cancelled = "[ $1 = show ] && echo JobState=CANCELLED RunTime=00:00:10 TimeLimit=00:10:00; exit 0"
    done = hand_over(
        sbatch="echo 77",
        squeue='[ "$4" = -o ] && kill -TERM $(cat shell); exit 0',
        scontrol=cancelled,
        scancel="exit 0",
    )
    assert done.returncode == 1 and "the chain stops: cancelled" in done.stderr, done.stderr
    assert calls(tmp_path, "scancel 77") == 1 and not (tmp_path / ".chains" / "5").exists()


def test_where_one_job_may_be_submitted_it_is_requeued(
    hand_over: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = hand_over(
        sbatch="echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1", scontrol="exit 0"
    )
    assert done.returncode == 0, done.stderr
    assert (calls(tmp_path, "sbatch --parsable"), calls(tmp_path, "scontrol requeue 5")) == (2, 1)


def test_the_next_job_asks_for_no_more_than_the_partition_allows_by_now(
    hand_over: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = hand_over(sinfo="echo 30:00", sbatch="echo 77", squeue="exit 0")
    assert done.stderr == "warning: partition p allows 30:00 by now; the next job gets that instead of 60\n"
    assert calls(tmp_path, "--time=30:00") == 1
