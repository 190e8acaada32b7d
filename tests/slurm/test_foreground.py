"""Training packages without SLURM: in the foreground, until Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.programs import STOPPED
from tests.slurm.jobs import PATIENCE, STEADY, Site, is_contiguous, tiny

PLAIN = {
    "model": "base",
    "n_layer": 2,
    "n_layer_begin": None,
    "n_layer_end": None,
    "n_repeat": None,
    "depth_embedding": None,
}
PACKAGES = {
    "adm-train": ([], {"model": None}),
    "base-train": (["base", "12"], PLAIN),
    "cot-res-train": ([], {"model": None, "depth_embedding": None}),
    "lncot-train": ([], {"model": None}),
}
STEPS = 20


@pytest.fixture
def path_without_slurm(tmp_path: Path) -> str:
    """A folder with all programs but SLURM's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            if (
                program.name not in ("sbatch", "sinfo", "squeue", "scontrol", "scancel", "srun")
                and not (folder / program.name).exists()
            ):
                (folder / program.name).symlink_to(program)
    return str(folder)


def test_without_slurm_every_training_package_trains_until_ctrl_c_saves_and_goes_on_at_the_next_call(
    site: Site, path_without_slurm: str
) -> None:
    sites = {
        package: Site(site.cluster, site.repo, site.results / package, {"PATH": path_without_slurm})
        for package in PACKAGES
    }
    calls = {
        package: (*words, "--name", "run", "--", *tiny(iterations=STEPS, **changes))
        for package, (words, changes) in PACKAGES.items()
    }
    for each in sites.values():
        each.pace(STEADY)
    first = {package: sites[package].start(package, *words) for package, words in calls.items()}
    for package, training in first.items():
        sites[package].wait_for_step(3)
        os.killpg(training.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
        out, err = training.communicate(timeout=PATIENCE)
        assert training.returncode == STOPPED, out + err
        assert "no SLURM here: this runs in the foreground" in err
    for each in sites.values():
        each.pace(0)
    second = {package: sites[package].start(package, *words) for package, words in calls.items()}
    for package, training in second.items():
        out, err = training.communicate(timeout=PATIENCE)
        assert training.returncode == 0, out + err
        assert len(sites[package].ledger()) == 2 and is_contiguous(sites[package].ledger(), STEPS)


def test_local_trains_in_the_foreground_where_there_is_slurm_too(site: Site) -> None:
    outcome = site.call("lncot-train", "--local", "--name", "run", "--", *tiny(model=None, iterations=6))
    assert outcome.code == 0, outcome.err
    assert outcome.job == "" and site.ledger()[-1]["state"] == "finished"
