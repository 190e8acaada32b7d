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
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    (place / "index.html").write_text(
        "".join(f'<a href="{path.name}">{path.name}</a>' for path in place.glob("*.whl"))
    )


def library(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A script after iridis/lib.sh, for an environment in `folder` with pip's usual index there."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_"))}
    given = {
        **own,
        "USE_CONDA": "no",
        "PYTHON": sys.executable,
        "VENV_DIR": str(folder / "env"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": (folder / "usual").as_uri(),
        **env,
    }
    return subprocess.run(
        ["bash", "-c", f"source iridis/lib.sh; {script}"],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
        check=False,
    )


def pinned_version() -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch==")).removeprefix("torch==")


@pytest.mark.parametrize(
    ("given", "wanted"), [({}, pinned_version()), ({"TORCH_VERSION": "2.11.0+cu126"}, "2.11.0+cu126")]
)
def test_the_torch_of_constraints_is_wanted_unless_the_site_names_another(
    tmp_path: Path, given: dict[str, str], wanted: str
) -> None:
    done = library("constraints | grep '^torch'; torch_wanted", tmp_path, **given)
    assert done.stdout.split() == [f"torch=={wanted}"] * 2, done.stderr


def test_the_pinned_torch_is_within_the_range_that_a_site_may_name(tmp_path: Path) -> None:
    assert library("check_torch_version", tmp_path, TORCH_VERSION=pinned_version()).returncode == 0


@pytest.mark.parametrize(
    "version", ["2.8.0", "2.99.0", "3.0.0", "newest", "2.13", "==2.13.0", "2.13.0/; id", " "]
)
def test_a_wrong_torch_version_is_refused_before_anything_is_installed(tmp_path: Path, version: str) -> None:
    done = library("ensure_environment", tmp_path, TORCH_VERSION=version)
    assert done.returncode == 2 and done.stderr.startswith("error: TORCH_VERSION must be a version within")
    assert (done.stderr.count("\n"), done.stdout, list(tmp_path.iterdir())) == (1, "", [])


def test_an_environment_is_made_anew_when_its_torch_changes(tmp_path: Path) -> None:
    def stamp(**env: str) -> str:
        return library("stamp_of requirements.txt", tmp_path, **env).stdout

    assert stamp() and stamp() == stamp(TORCH_VERSION=pinned_version()) != stamp(TORCH_VERSION="2.11.0")


@pytest.mark.slow
def test_torch_is_replaced_when_the_site_names_another_version_or_index(tmp_path: Path) -> None:
    version, other = pinned_version(), "2.11.0"
    wheel(tmp_path / "usual", "torch", version)
    wheel(tmp_path / "usual", "torch", other)
    wheel(tmp_path / "cuda", "torch", f"{version}+cu000")
    for name in ("requirements.txt", "constraints.txt"):
        lines = (ROOT / name).read_text().splitlines()
        (tmp_path / name).write_text(next(line for line in lines if line.startswith("torch")) + "\n")
    cuda = {"TORCH_INDEX_URL": (tmp_path / "cuda").as_uri()}

    def installed(**env: str) -> str:
        script = f"REPO_DIR='{tmp_path}'; ensure_environment >&2; python -c "
        show = "'import importlib.metadata as m; print(m.version(\"torch\"))'"
        done = library(script + show, tmp_path, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert installed() == version
    assert installed(**cuda) == f"{version}+cu000"
    assert installed(**cuda, PIP_INDEX_URL="file:///nowhere") == f"{version}+cu000"
    assert installed() == f"{version}+cu000"
    assert installed(TORCH_VERSION=other) == other
    assert installed(**cuda) == f"{version}+cu000"
