"""How a first job is submitted, where sbatch refuses it or the machine lacks what mail needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import ROOT, link_programs

SCRIPT = """source iridis/train.sh
parse_options
before_submit() { :; }
with_run_dir() { :; }
PACKAGE_DIR="$STUBS" PARTITION=p TIME_LIMIT=60 N_NODES=1 N_GPUS=0 CPUS=1 MEMORY=1G
submit_job
"""
Submit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Submits a job on a machine that has the programs of this one, no mail and an sbatch whose shell code is given."""
    programs = link_programs(tmp_path / "bin")
    (programs / "mail").unlink(missing_ok=True)

    def run(sbatch: str, **env: str) -> subprocess.CompletedProcess[str]:
        (programs / "sbatch").write_text(f"#!/bin/sh\ncat >/dev/null\n{sbatch}\n")
        (programs / "sbatch").chmod(0o755)
        settings = {"STUBS": str(tmp_path), "USE_CONDA": "no", "SCRATCH_DIR": str(tmp_path), "PATH": str(programs), **env}
        return subprocess.run(["bash", "-c", SCRIPT], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False)

    return run


def test_where_an_account_is_required_the_refusal_says_how_to_give_one(submit: Submit, tmp_path: Path) -> None:
    done = submit("echo 'sbatch: error: Invalid account or account/partition combination specified' >&2; exit 1")
    assert done.returncode == 2 and done.stderr.splitlines()[0].startswith("sbatch: error: Invalid account")
    assert "SBATCH_ACCOUNT" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert (tmp_path / "run_0" / "not_submitted.txt").read_text() == "sbatch refused the job\n"


def test_mail_that_cannot_be_sent_is_told_at_submission(submit: Submit) -> None:
    done = submit("echo 7", NOTIFY_EMAIL="somebody@example.org")
    assert done.returncode == 0 and done.stderr.startswith("warning: there is no mail program here"), done.stderr


def test_nobody_who_asked_for_no_mail_hears_of_it(submit: Submit) -> None:
    done = submit("echo 7", NOTIFY_EMAIL="")
    assert (done.returncode, done.stderr) == (0, "")
