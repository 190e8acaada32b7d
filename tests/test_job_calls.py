"""Calls of the job scripts that are refused in one line, on a machine without SLURM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.job_calls import call, is_one_line, job
from tests.programs import ROOT

pytestmark = pytest.mark.usefixtures("no_slurm")

PACKAGES = sorted(path.parent.name for path in (ROOT / "iridis").glob("*/job.sh"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_copy_as_sbatch_runs_it_says_how_to_call_the_package(
    clone: Path, tmp_path: Path, package: str
) -> None:
    done = call("bash", shutil.copy(job(clone, package), tmp_path / "slurm_script"))
    assert is_one_line(done) and done.stderr.endswith(f"bash iridis/{package}/job.sh\n"), done.stderr


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"]])
@pytest.mark.parametrize(
    "script", ["lncot-train/job.sh", "eval-adm/job.sh", "quickstart/job.sh", "pipeline.sh", "cancel.sh"]
)
def test_another_shell_is_refused(clone: Path, shell: list[str], script: str) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    done = call(*shell, clone / "iridis" / script)
    assert is_one_line(done) and "bash" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "package", ["lncot-train", "eval-lncot", "quickstart", "extract-tokenize-dataset", "download-dataset"]
)
def test_an_unknown_word_is_refused_and_nothing_is_made(clone: Path, package: str) -> None:
    done = call("bash", job(clone, package), "dry-run", "--checkpoint", clone)
    assert done.returncode == 2 and "unknown word dry-run" in done.stderr.splitlines()[-1], done.stderr
    assert list((clone / "iridis" / package).glob("run_*")) == []


def test_a_symlink_to_a_job_script_is_the_script(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(job(clone, "lncot-train"))
    assert "bash iridis/lncot-train/job.sh" in call("bash", tmp_path / "train", "--help").stdout


@pytest.mark.parametrize("script", ["pipeline.sh", "cancel.sh", "fetch-results.sh"])
def test_a_copy_of_a_script_beside_the_packages_says_how_to_call_it(
    clone: Path, tmp_path: Path, script: str
) -> None:
    done = call("bash", shutil.copy(clone / "iridis" / script, tmp_path / "slurm_script"))
    assert is_one_line(done) and done.stderr.endswith(f"bash iridis/{script}\n"), done.stderr


def test_a_symlink_to_fetch_results_is_the_script(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "fetch").symlink_to(clone / "iridis" / "fetch-results.sh")
    assert is_one_line(call("bash", tmp_path / "fetch"))


UNUSED = [
    ("quickstart", "--chain", "3"),
    ("quickstart", "--name", "x"),
    ("quickstart", "--where"),
    ("quickstart", "--checkpoint", "/x"),
    ("lncot-train", "--checkpoint", "/x"),
    ("lncot-train", "--replot"),
    ("eval-lncot", "--chain", "3"),
    ("lncot-train", "--local", "--pin-code"),
    ("lncot-train", "--local", "--after", "5"),
    ("quickstart", "--steps", "5"),
    ("lncot-train", "--steps", "5"),
]


@pytest.mark.parametrize("words", UNUSED, ids=" ".join)
def test_an_option_that_a_package_has_no_use_for_is_refused(clone: Path, words: tuple[str, ...]) -> None:
    done = call("bash", job(clone, words[0]), *words[1:])
    assert is_one_line(done) and list((clone / "iridis" / words[0]).glob("run_*")) == [], done.stderr


@pytest.mark.parametrize("words", [["--pin-code"], ["--where"], ["--chain", "2"]], ids=" ".join)
def test_a_pipeline_refuses_what_it_does_not_do(clone: Path, words: list[str]) -> None:
    assert is_one_line(call("bash", clone / "iridis" / "pipeline.sh", *words))


@pytest.mark.parametrize(
    "words", [["--after", "5"], ["--pin-code"], ["--chain", "2"], ["--where"]], ids=" ".join
)
def test_cancel_refuses_what_it_does_not_do(clone: Path, words: list[str]) -> None:
    done = call("bash", clone / "iridis" / "cancel.sh", *words, "all")
    assert is_one_line(done) and "this takes --dry-run alone" in done.stderr


def test_an_unknown_way_to_go_on_is_refused(clone: Path) -> None:
    done = call("bash", job(clone, "lncot-train"), CHAIN_BY="requee")
    assert is_one_line(done) and "CHAIN_BY" in done.stderr


def test_a_step_that_is_missing_is_refused_before_there_is_a_run_folder(clone: Path, tmp_path: Path) -> None:
    done = call(
        "bash", job(clone, "lncot-exp4"), "--checkpoint", tmp_path, "--steps", "40", SCRATCH_DIR=str(tmp_path)
    )
    assert (
        done.returncode == 2
        and f"--steps 40: {tmp_path} has no checkpoint of that step" in done.stderr.splitlines()[-1]
    ), done.stderr
    assert list((clone / "iridis" / "lncot-exp4").glob("run_*")) == []


def test_help_of_a_program_is_not_queued(clone: Path, tmp_path: Path) -> None:
    done = call(
        "bash",
        job(clone, "eval-lncot"),
        "--dry-run",
        "--checkpoint",
        tmp_path,
        "--",
        "--help",
        SCRATCH_DIR=str(tmp_path),
    )
    assert done.returncode == 2 and "--help is nothing to queue: python eval.py --help" in done.stderr, (
        done.stderr
    )


def test_where_the_environment_says_posix_the_line_names_the_variable(clone: Path) -> None:
    done = call("bash", job(clone, "quickstart"), POSIXLY_CORRECT="1")
    assert is_one_line(done) and "env -u POSIXLY_CORRECT" in done.stderr


def test_cdpath_does_not_change_where_the_clone_is(clone: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'source iridis/env.sh && printf %s "$REPO_DIR"'],
        cwd=clone,
        env={**os.environ, "CDPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == str(clone)


@pytest.mark.parametrize(
    "words", [["cot", "12"], ["cot", "0x5"], ["cot", "12x"], ["base", "12x5"], ["lncot", "12x5"], []]
)
def test_what_is_no_model_is_refused(clone: Path, words: list[str]) -> None:
    assert is_one_line(call("bash", job(clone, "base-train"), *words))


@pytest.mark.parametrize("words", [["ponder"], ["pondernet", "x"], []])
def test_an_unknown_ablation_is_answered_with_those_that_there_are(clone: Path, words: list[str]) -> None:
    done = call("bash", job(clone, "ablation-train"), *words)
    assert is_one_line(done) and done.stderr.endswith(
        "lncot-no-embedding, adm-no-embedding, pondernet, stick-breaking or mixture-of-repeats\n"
    )


def test_a_clone_that_is_someone_else_s_is_refused_with_what_to_do(clone: Path, tmp_path: Path) -> None:
    done = call("bash", "-c", f"source '{clone}/iridis/lib.sh'; new_run_dir /proc")
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: cannot make a folder in")
        and "git clone" in done.stderr
    ), done.stderr


def test_an_environment_whose_interpreter_does_not_start_is_refused(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/nowhere/python")
    stamp = call("bash", "-c", f"source '{clone}/iridis/lib.sh'; stamp_of requirements.txt").stdout.strip()
    (tmp_path / stamp).touch()
    done = call("bash", job(clone, "lncot-train"), "--local", VENV_DIR=str(tmp_path))
    assert is_one_line(done) and "/nowhere/python" in done.stderr and "VENV_DIR" in done.stderr, done.stderr


@pytest.mark.parametrize("options", ["--array=1-2", "-a 1-2", "--wait", "-W"])
def test_an_array_or_a_wait_in_the_options_of_sbatch_is_refused(clone: Path, options: str) -> None:
    script = (
        f"source '{clone}/iridis/lib.sh'; PARTITION=p TIME_LIMIT=1 N_NODES=1 N_GPUS=0 CPUS=1 MEMORY=1G AFTER="
        " RUN_DIR=/x; sbatch_words"
    )
    assert is_one_line(call("bash", "-c", script, SBATCH_OPTIONS=options))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `scontrol` that has forgotten all jobs, as after their MinJobAge."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program.parent


def latest_jobs(clone: Path, jobs: str) -> subprocess.CompletedProcess[str]:
    return call(
        "bash",
        "-c",
        f"source '{clone}/iridis/lib.sh'; latest_jobs {jobs}",
        SCRATCH_DIR=str(clone / "scratch"),
    )


def ended_job(clone: Path, number: str, done: bool) -> None:
    run = clone / "iridis" / "quickstart" / f"run_{number}"
    run.mkdir()
    (run / f"slurm_{number}.out").touch()
    if done:
        (run / "done").touch()


def test_a_job_that_succeeded_long_ago_is_not_waited_for(clone: Path, slurm: Path) -> None:
    ended_job(clone, "70", done=True)
    assert (latest_jobs(clone, "70").returncode, latest_jobs(clone, "70").stdout) == (0, "\n")


def test_a_job_that_failed_long_ago_is_refused(clone: Path, slurm: Path) -> None:
    ended_job(clone, "71", done=False)
    done = latest_jobs(clone, "71")
    assert is_one_line(done) and "--after 71: that job has ended as FAILED" in done.stderr


@pytest.mark.parametrize(
    ("state", "code"), [("COMPLETED", 0), ("TIMEOUT", 2), ("CANCELLED by 0", 2), ("OUT_OF_MEMORY", 2)]
)
def test_accounting_tells_of_a_job_that_slurm_has_forgotten(
    clone: Path, slurm: Path, state: str, code: int
) -> None:
    (slurm / "sacct").write_text(f"#!/bin/sh\necho '{state}'\n")
    (slurm / "sacct").chmod(0o755)
    assert latest_jobs(clone, "72").returncode == code


@pytest.mark.parametrize(
    ("state", "expected"),
    [("RUNNING", "73\n"), ("PENDING", "73\n"), ("REQUEUED", "73\n"), ("SUSPENDED", "73\n")],
)
def test_a_job_in_the_queue_is_waited_for(clone: Path, slurm: Path, state: str, expected: str) -> None:
    (slurm / "scontrol").write_text(f"#!/bin/sh\necho 'JobId=73 JobName=x JobState={state} Reason=None'\n")
    assert latest_jobs(clone, "73").stdout == expected


def test_a_configuration_of_slurm_that_is_not_there_is_told_at_once(clone: Path, slurm: Path) -> None:
    for name in ("sbatch", "sinfo"):
        (slurm / name).write_text("#!/bin/sh\nexec sleep 100\n")
        (slurm / name).chmod(0o755)
    done = call("bash", job(clone, "quickstart"), SLURM_CONF="/nowhere/slurm.conf")
    assert is_one_line(done) and "SLURM_CONF=/nowhere/slurm.conf: there is no such file" in done.stderr
