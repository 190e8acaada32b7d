"""How a first job is submitted, where sbatch refuses it or the machine lacks what mail needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import ROOT, link_programs

SCRIPT = """source iridis/$LIBRARY
parse_options
before_submit() { :; }
with_run_dir() { :; }
PACKAGE_DIR="$STUBS" PARTITION=p TIME_LIMIT=60 N_NODES=1 N_GPUS=0 CPUS=1 MEMORY=1G
submit_job
"""
Submit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Submits a job on a machine that has the programs of this one, no mail and an sbatch whose shell code
    is given.
    """
    programs = link_programs(tmp_path / "bin")
    (programs / "mail").unlink(missing_ok=True)

    def run(sbatch: str, **env: str) -> subprocess.CompletedProcess[str]:
        (programs / "sbatch").write_text(
            f"#!/bin/sh\ncat >/dev/null\nprintf '%s\\n' \"$@\" >'{tmp_path}/words'\n{sbatch}\n"
        )
        (programs / "sbatch").chmod(0o755)
        settings = {
            "STUBS": str(tmp_path),
            "LIBRARY": "train.sh",
            "USE_CONDA": "no",
            "SCRATCH_DIR": str(tmp_path),
            "PATH": str(programs),
            **env,
        }
        return subprocess.run(
            ["bash", "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def words(submit: Submit, tmp_path: Path) -> Callable[..., list[str]]:
    """The words that sbatch gets."""

    def read(**env: str) -> list[str]:
        done = submit("echo 7", **env)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "words").read_text().splitlines()

    return read


def test_where_an_account_is_required_the_refusal_says_how_to_give_one(
    submit: Submit, tmp_path: Path
) -> None:
    done = submit(
        "echo 'sbatch: error: Invalid account or account/partition combination specified' >&2; exit 1"
    )
    assert done.returncode == 2 and done.stderr.splitlines()[0].startswith("sbatch: error: Invalid account")
    assert (
        " ACCOUNT=NAME, in the environment or iridis/site.sh" in done.stderr.splitlines()[-1]
        and "Traceback" not in done.stderr
    )
    assert (tmp_path / "run_0" / "not_submitted.txt").read_text() == "sbatch refused the job\n"


def test_an_account_that_is_refused_is_named(submit: Submit) -> None:
    assert "ACCOUNT=NAME (now nobodys)" in submit("exit 1", ACCOUNT="nobodys").stderr


@pytest.mark.parametrize("library", ["train.sh", "evaluate.sh", "lib.sh"])
def test_every_job_is_charged_to_the_account(words: Callable[..., list[str]], library: str) -> None:
    assert "--account=ours" in words(LIBRARY=library, ACCOUNT="ours")


def test_without_an_account_slurm_chooses(words: Callable[..., list[str]]) -> None:
    assert not [word for word in words() if word.startswith("--account")]


@pytest.mark.parametrize(
    ("library", "events"),
    [
        ("train.sh", "FAIL,INVALID_DEPEND"),
        ("evaluate.sh", "END,FAIL,INVALID_DEPEND"),
        ("lib.sh", "END,FAIL,INVALID_DEPEND"),
    ],
)
def test_slurm_mails_the_end_of_each_job_that_is_no_link_of_a_chain(
    words: Callable[..., list[str]], library: str, events: str
) -> None:
    assert f"--mail-type={events}" in words(LIBRARY=library, NOTIFY_EMAIL="somebody@example.org")


def test_mail_that_cannot_be_sent_is_told_at_submission(submit: Submit) -> None:
    done = submit("echo 7", NOTIFY_EMAIL="somebody@example.org")
    assert done.returncode == 0 and done.stderr.startswith("warning: there is no mail program here"), (
        done.stderr
    )


def test_nobody_who_asked_for_no_mail_hears_of_it(submit: Submit) -> None:
    done = submit("echo 7", NOTIFY_EMAIL="")
    assert (done.returncode, done.stderr) == (0, "")


def test_only_a_chain_needs_a_mail_program_on_the_nodes(submit: Submit) -> None:
    assert submit("echo 7", LIBRARY="evaluate.sh", NOTIFY_EMAIL="somebody@example.org").stderr == ""


# the site's settings


def settings(tmp_path: Path, show: str, hostname: str = "", **env: str) -> str:
    """What iridis/env.sh makes of an environment, on a machine with SLURM and this name."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name, answer in (("sbatch", ""), ("hostname", hostname)):
        (programs / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (programs / name).chmod(0o755)
    known = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "USER": "abc1",
        "SCRATCH_DIR": "/nowhere/scratch",
        **env,
    }
    done = subprocess.run(
        ["bash", "-c", f"source iridis/env.sh; {show}"],
        cwd=ROOT,
        env=known,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("given", "address"),
    [({}, "abc1@soton.ac.uk"), ({"NOTIFY_EMAIL": ""}, ""), ({"NOTIFY_EMAIL": "a@b"}, "a@b")],
)
def test_an_address_is_derived_only_where_none_was_given_and_reaches_the_jobs(
    tmp_path: Path, given: dict[str, str], address: str
) -> None:
    assert settings(tmp_path, "bash -c 'echo $NOTIFY_EMAIL'", "login1.iridis.soton.ac.uk", **given) == address


@pytest.mark.parametrize("name", ["PIP_CACHE_DIR", "CONDA_PKGS_DIRS"])
def test_packages_are_cached_on_the_scratch_unless_told_otherwise(tmp_path: Path, name: str) -> None:
    show = f"bash -c 'echo ${name}'"
    assert settings(tmp_path, show).startswith("/nowhere/scratch/.cache/")
    assert settings(tmp_path, show, **{name: "/elsewhere"}) == "/elsewhere"


def test_without_a_scratch_packages_are_cached_where_the_tools_do(tmp_path: Path) -> None:
    assert settings(tmp_path, "echo ${PIP_CACHE_DIR-unset}", SCRATCH_DIR="") == "unset"


# another build of torch


def wheel(folder: Path, name: str, version: str) -> None:
    """An empty package on an index of its own."""
    place = folder / name
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    (place / "index.html").write_text(
        "".join(f'<a href="{path.name}">{path.name}</a>' for path in place.glob("*.whl"))
    )


@pytest.mark.slow
def test_torch_comes_from_its_own_index_also_into_an_environment_that_has_another_build(
    tmp_path: Path,
) -> None:
    pin = next(line for line in (ROOT / "requirements.txt").read_text().split() if line.startswith("torch=="))
    version = pin.removeprefix("torch==")
    wheel(tmp_path / "usual", "torch", version)
    wheel(tmp_path / "cuda", "torch", f"{version}+cu000")
    (tmp_path / "requirements.txt").write_text(f"{pin}\n")

    def installed(**env: str) -> str:
        script = (
            'source iridis/lib.sh; is_installed "$0/env" "$0/env/stamp" || install "$0/env"'
            ' "$0/requirements.txt" "$0/env/stamp" >&2\n"$0/env/bin/python" -c "import importlib.metadata as'
            " m; print(m.version('torch'))\""
        )
        own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        given = {
            **own,
            "USE_CONDA": "no",
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": (tmp_path / "usual").as_uri(),
            **env,
        }
        done = subprocess.run(
            ["bash", "-c", script, str(tmp_path)],
            cwd=ROOT,
            env=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert installed() == version
    assert installed(TORCH_INDEX_URL=(tmp_path / "cuda").as_uri()) == f"{version}+cu000"
    assert (
        installed(TORCH_INDEX_URL=(tmp_path / "cuda").as_uri(), PIP_INDEX_URL="file:///nowhere")
        == f"{version}+cu000"
    )
    assert installed() == f"{version}+cu000"
