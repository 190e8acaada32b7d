"""The job scripts, run as users run them, on a machine without SLURM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.programs import ROOT

pytestmark = pytest.mark.slow


def bash(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(shutil.which("bash")), "-c", script], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True,
                          check=False, timeout=1500)


def test_quickstart_trains_stops_resumes_evaluates_and_prints_its_table(tmp_path: Path) -> None:
    outcome = bash("bash iridis/quickstart/job.sh", SCRATCH_DIR=str(tmp_path), VENV_DIR=sys.prefix, ITERATIONS="40", ADAPTIVE_ITERATIONS="10",
                   SWEEP_TOKENS="1024", N_EMBD="32", BATCH_SIZE="2", SEQUENCE_LENGTH="64")
    run_dir = Path(outcome.stdout.splitlines()[0].removeprefix("run folder: "))
    try:
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        result = json.loads((run_dir / "quickstart.json").read_text())
        (begin, half, reason), (resumed, end, _) = result["segments"]
        assert (begin, reason, half, end) == (0, "SIGUSR1", resumed, 40)
        assert f"{result['unigram_perplexity']:.2f}" in outcome.stdout
        assert (run_dir / "command.txt").is_file() and (run_dir / "revision.txt").is_file()
    finally:
        shutil.rmtree(run_dir)


def test_a_dry_run_without_slurm_makes_nothing(tmp_path: Path) -> None:
    before = sorted((ROOT / "iridis" / "quickstart").iterdir())
    outcome = bash("bash iridis/quickstart/job.sh --dry-run", SCRATCH_DIR=str(tmp_path / "scratch"), VENV_DIR=sys.prefix)
    assert (outcome.returncode, outcome.stdout) == (0, "would run here, in processes: 1\n"), outcome.stderr
    assert sorted((ROOT / "iridis" / "quickstart").iterdir()) == before and not (tmp_path / "scratch").exists()


def test_twenty_run_folders_at_once_are_twenty_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda _: bash(f"source iridis/lib.sh; new_run_dir '{tmp_path}'").stdout.strip(), range(20)))
    assert sorted(made) == sorted(str(tmp_path / f"run_{n}") for n in range(20))


def test_recorded_command_survives_quotes_and_spaces(tmp_path: Path) -> None:
    words = ["printf", "%s|", "a b", "it's", '"x"', "$HOME", "*"]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    assert bash(f"source iridis/lib.sh; record_run '{tmp_path}' {quoted}").returncode == 0
    assert bash(f". {tmp_path}/command.txt").stdout == "".join(f"{word}|" for word in words[2:])


def test_paths_can_be_set_in_the_environment(tmp_path: Path) -> None:
    shown = bash('source iridis/env.sh; echo "$DATA_DIR $RESULTS_DIR"', SCRATCH_DIR=str(tmp_path), RESULTS_DIR="/elsewhere").stdout
    assert shown.split() == [f"{tmp_path}/datasets", "/elsewhere"]


def test_an_interpreter_that_is_too_old_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for tool in ("dirname", "basename"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    outcome = bash("source iridis/lib.sh; find_python", PYTHON=str(old), PATH=str(tmp_path))
    assert outcome.returncode == 2
    assert "no Python 3.11 or newer found" in outcome.stderr
