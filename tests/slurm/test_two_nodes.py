"""Two nodes train one model. Last of the tests on the cluster: SLURM takes minutes to call the nodes of
such a job idle again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.programs import metrics, run
from tests.slurm.jobs import Site, logs, tiny


def losses(results: Path) -> list[float]:
    return [row["loss"] for row in metrics(results) if row["kind"] == "train"]


def test_two_nodes_of_two_processes_give_the_losses_of_one_node_of_four(site: Site, tmp_path: Path) -> None:
    outcome = site.submit(
        "adm-train",
        "--name",
        "run",
        "--",
        *tiny(iterations=8, log_freq=1, acc_steps=4),
        N_NODES="2",
        N_GPUS="2",
        PARTITION="a100",
    )
    site.wait(outcome)
    assert "device: 4 x CPU" in logs(outcome.run_dir) and "on n[1-2]" in logs(outcome.run_dir), logs(
        outcome.run_dir
    )
    settings = json.loads((site.experiment() / "summary.json").read_text())["args"]
    overlay, local = tmp_path / "flags.json", tmp_path / "local"
    overlay.write_text(
        json.dumps(
            {
                name: value
                for name, value in settings.items()
                if name not in ("config", "results_base_folder", "stop_file")
            }
        )
    )
    one_node = run(
        [
            sys.executable,
            "-m",
            "distributed.torchrun",
            "--standalone",
            "--nproc_per_node",
            "4",
            "main.py",
            "--config",
            str(overlay),
            "--results_base_folder",
            str(local),
        ]
    )
    assert one_node.returncode == 0, one_node.stderr
    assert losses(site.results) == pytest.approx(losses(local), rel=1e-4)
