"""What a newcomer meets at the doors: an environment that is not there, and experiments called by their
name alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import config
from errors import UserError, missing_package
from files import sha256_of
from iridis.quickstart.table import how_to_go_on
from optim import initial
from optim.restore import find_checkpoint
from tests.programs import PEER, ROOT

NUMBERS = str(ROOT / "tests" / "data" / "reference" / "macs.json")
# each with words that lead it to its first package
DOORS = {
    "main.py": ["--dataset", "stdlib"],
    "eval.py": ["--checkpoint", NUMBERS],
    "generate.py": ["--checkpoint", NUMBERS],
    "infer.py": [NUMBERS, "--input", NUMBERS],
    "get_ppl_per_mac.py": ["--checkpoint", NUMBERS],
    "get_router_weights.py": ["--checkpoint", NUMBERS],
    "get_routing.py": ["--checkpoint", NUMBERS],
    "plot_fig2.py": [],
    "plot_fig3.py": [],
    "plot_fig5.py": [NUMBERS],
    "data.tokenize": [],
    "data.inspect": [],
    "data.overlap": ["stdlib"],
    "data.download": [],
    "data.genomes.preprocess": [],
    "report": [str(PEER)],
    "models.export": [NUMBERS, "nowhere"],
    "iridis.preflight": [],
    "iridis.quickstart.table": [],
    "distributed.torchrun": ["main.py"],
}


@pytest.mark.parametrize("door", ["main.py", "get_routing.py", "data.inspect", "report", "models.export"])
def test_ctrl_c_while_a_program_starts_is_no_traceback(tmp_path: Path, door: str) -> None:
    program = [str(ROOT / door)] if door.endswith(".py") else ["-m", door]
    for package in ("numpy", "torch"):
        (tmp_path / f"{package}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    outcome = subprocess.run(
        [sys.executable, "-S", *program, *DOORS[door]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 130, outcome.stderr
    assert len(outcome.stderr.splitlines()) <= 1


@pytest.mark.parametrize("door", DOORS)
def test_a_missing_package_is_one_line_at_every_door(tmp_path: Path, door: str) -> None:
    program = [str(ROOT / door)] if door.endswith(".py") else ["-m", door]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # -S: no packages
    outcome = subprocess.run(
        [sys.executable, "-S", *program, *DOORS[door]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 2, outcome.stderr
    (line,) = outcome.stderr.splitlines()
    assert " is not installed: " in line and "pip install -r requirements.txt -c constraints.txt" in line


@pytest.mark.parametrize("name", ["msprime", "tskit"])
def test_a_missing_package_of_genomes_is_in_a_file_of_its_own(name: str) -> None:
    line = missing_package(ModuleNotFoundError(name=name)) or ""
    assert "pip install -r requirements-genomes.txt -c constraints.txt" in line


def test_a_missing_module_of_our_own_stays_a_crash(tmp_path: Path) -> None:
    program = "import config; config.guarded('x', lambda: __import__('models.nowhere'))"
    outcome = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 1 and "Traceback" in outcome.stderr


@pytest.mark.parametrize(
    ("kind", "line"), [("bin", "source {}/bin/activate"), ("conda-meta", "conda activate {}")]
)
def test_the_quickstart_ends_with_how_to_activate_its_environment(
    tmp_path: Path, kind: str, line: str
) -> None:
    (tmp_path / kind).mkdir()
    assert how_to_go_on(tmp_path).endswith(line.format(tmp_path))


def test_an_environment_in_the_clone_is_named_as_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert how_to_go_on(tmp_path / ".venv").endswith("source .venv/bin/activate")


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """./exps with the names "one", which two models have, and "other"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    source = next(PEER.glob("exps/*/*/official_adm/ckpt.pt"))
    for place in (
        "exps/owt2/adm/one",
        "exps/owt2/base/one",
        "exps/owt2/adm/other",
        "jobs/owt2/adm/job",
        "exps/owt2/adm/group/deep",
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "ckpt.pt").symlink_to(source)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("other", "exps/owt2/adm/other"),
        ("base/one", "exps/owt2/base/one"),
        ("owt2/adm/one", "exps/owt2/adm/one"),
        ("group/deep", "exps/owt2/adm/group/deep"),
        ("other/ckpt.pt", "exps/owt2/adm/other"),
        ("exps/owt2/adm/one", "exps/owt2/adm/one"),
    ],
)
def test_an_experiment_is_found_by_its_name(experiments: Path, name: str, found: str) -> None:
    assert find_checkpoint(name) == Path(found, "ckpt.pt")


def test_a_name_is_looked_for_where_jobs_write_too(
    experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS_DIR", "jobs")
    assert find_checkpoint("job") == Path("jobs/owt2/adm/job/ckpt.pt")


def test_a_name_is_looked_for_below_the_results_of_the_training_too(experiments: Path) -> None:
    args = config.add_defaults({"results_base_folder": "jobs"})
    kept = {"given": "another", "sha256": sha256_of(Path("jobs/owt2/adm/job/ckpt.pt"))}
    assert initial.find("job", results="jobs") == Path("jobs/owt2/adm/job/ckpt.pt")
    args.init_from = "job"
    assert initial.file_differences(args, {"initial": kept}) == []


def test_one_folder_under_two_names_holds_one_experiment(
    experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS_DIR", str(Path("exps").resolve()))
    assert find_checkpoint("other").name == "ckpt.pt"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("one", r"several experiments have this name: exps/owt2/adm/one, exps/owt2/base/one"),
        ("othr", r"no such file or folder.*did you mean other\?"),
        ("n" * 5000, "no such file or folder"),
        ("*", "no such file or folder"),
        ("../x", "no such file or folder"),
    ],
)
def test_a_name_that_is_not_unique_or_unknown_is_one_line(experiments: Path, name: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        find_checkpoint(name)
