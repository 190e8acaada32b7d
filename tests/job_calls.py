"""Calls of the job scripts in a clone, with the VENV_DIR of the environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.programs import PEER

DATASET = {"DATASET": "openwebtext2", "DATA_DIR": str(PEER / "datasets")}


def call(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {"USE_CONDA": "no", "WANDB": "0", **env}
    return subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
        timeout=100,
    )


def job(clone: Path, package: str) -> Path:
    return clone / "iridis" / package / "job.sh"


def is_one_line(done: subprocess.CompletedProcess[str]) -> bool:
    return (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
    )
