"""Evaluation packages find the training by its name."""

from __future__ import annotations

import json

from tests.slurm.jobs import Site, logs, tiny

LIMITED = ("--", "--device", "cpu", "--eval_sample_size", "20")


def test_lncot_exp4_gives_a_summary_for_each_depth_with_average_depth_rising(site: Site) -> None:
    training = site.submit("adm-train", "--name", "run", "--", *tiny(model=None, iterations=6))
    outcome = site.submit("lncot-exp4", "--name", "run", "--after", training.job, *LIMITED)
    site.wait(outcome)
    paths = [outcome.run_dir / f"depth_{depth}" / "eval_summary_ckpt.json" for depth in (1, 2, "full")]
    depths = [json.loads(path.read_text())["average_depth"] for path in paths if path.exists()]
    assert len(depths) == 3 and depths[0] < depths[1] < depths[2], logs(outcome.run_dir)


def test_an_evaluation_of_a_name_that_was_not_trained_is_refused(site: Site) -> None:
    outcome = site.call("eval-lncot", "--name", "never trained", *LIMITED)
    assert outcome.code == 2 and outcome.job == ""
    assert "there is no checkpoint" in outcome.err and "iridis/lncot-train/job.sh" in outcome.err
