"""iridis/mini-repro queues an array of its models, and behind it a job that evaluates and writes the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.slurm.jobs import Site, logs
from tests.slurm.test_sweep import BAD, FLAGS

ENTRIES = [
    {"label": "Standard 1", "model": "base"},
    {"label": "CoTFormer 1x2", "model": "cot", "n_repeat": 2},
]


def sweep_file(folder: Path) -> Path:
    path = folder / "mini.json"
    path.write_text(json.dumps({"flags": {**FLAGS, "iterations": 6}, "list": [*ENTRIES, BAD]}))
    return path


def test_the_page_is_written_also_where_a_model_has_failed(site: Site, tmp_path: Path) -> None:
    """The job that evaluates waits for all models, and does not need all of them to succeed."""
    outcome = site.submit("mini-repro", SWEEP=str(sweep_file(tmp_path)), CHAIN_BY="requeue")
    page = replace(outcome, out="run folder:" + outcome.out.rpartition("run folder:")[2])  # after the array
    site.wait(page)
    run = page.run_dir
    assert (run / "claims.html").exists(), logs(run)
    cells = json.loads((run / "claims.json").read_text())["trainings"]
    assert len(cells) == 3, logs(run)
    assert "bad: not finished, and not evaluated" in logs(run)
