"""Evaluation packages find the training by its name, and draw what they measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Outcome, Site, logs, tiny

LIMITED = ("--", "--device", "cpu", "--eval_sample_size", "8")


@pytest.fixture(scope="module")
def evaluated(
    cluster: Cluster, repo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Site, dict[str, Outcome]]:
    """Both packages of the adaptive model, queued behind its training."""
    site = Site(cluster, repo, tmp_path_factory.mktemp("evaluated") / "results")
    training = site.submit("adm-train", "--name", "run", "--", *tiny(model=None, iterations=6))
    outcomes = {
        package: site.submit(package, "--name", "run", "--after", training.job, *LIMITED)
        for package in ("lncot-exp4", "eval-adm")
    }
    for outcome in outcomes.values():
        site.wait(outcome)
    return site, outcomes


def test_lncot_exp4_measures_every_depth_and_draws_figure_4(
    evaluated: tuple[Site, dict[str, Outcome]],
) -> None:
    run_dir = evaluated[1]["lncot-exp4"].run_dir
    points = json.loads((run_dir / "ppl_per_mac.json").read_text())["fixed_depth"]
    depths = [point["average_depth"] for point in points]
    assert depths == sorted(set(depths)) and len(depths) == 3
    assert (run_dir / "fig4.png").stat().st_size > 10_000, logs(run_dir)


def test_eval_adm_leaves_summary_figure_5_and_report_in_the_run_folder(
    evaluated: tuple[Site, dict[str, Outcome]],
) -> None:
    run_dir = evaluated[1]["eval-adm"].run_dir
    missing = [
        name
        for name in (
            "eval_summary_ckpt.json",
            "eval_summary_ckpt_6.json",
            "eval_6.txt",
            "eval.txt",
            "fig4.png",
            "fig5.png",
            "report.md",
            "done",
        )
        if not (run_dir / name).exists()
    ]
    assert missing == [], logs(run_dir)


def test_large_files_go_to_the_scratch(evaluated: tuple[Site, dict[str, Outcome]]) -> None:
    site, outcomes = evaluated
    assert list(outcomes["eval-adm"].run_dir.rglob("router_weights*.npz")) == []
    assert len(list((site.results.parent / "analysis_workspace").rglob("router_weights_*.npz"))) == 4


def test_replot_draws_again_from_the_data_of_the_last_run(evaluated: tuple[Site, dict[str, Outcome]]) -> None:
    site, outcomes = evaluated
    picture = outcomes["eval-adm"].run_dir / "fig5.png"
    before = picture.read_bytes()
    picture.unlink()
    assert site.call("eval-adm", "--replot").code == 0
    assert picture.read_bytes() == before


def test_an_evaluation_of_a_name_that_was_not_trained_is_refused(site: Site) -> None:
    outcome = site.call("eval-lncot", "--name", "never trained", *LIMITED)
    assert outcome.code == 2 and outcome.job == ""
    assert "there is no checkpoint" in outcome.err and "iridis/lncot-train/job.sh" in outcome.err


def test_eval_base_evaluates_all_that_is_trained_in_one_job_and_draws_figures_2_and_3(site: Site) -> None:
    small = tiny(
        model=None,
        n_layer=None,
        n_layer_begin=None,
        n_layer_end=None,
        n_repeat=None,
        depth_embedding=None,
        iterations=4,
    )
    trainings = [
        site.submit("base-train", "base", "2", "--", *small),
        site.submit("ablation-train", "mixture-of-repeats", "--", *small, N_LAYER="4", N_REPEAT="2"),
    ]
    for training in trainings:
        site.wait(training)
    outcome = site.submit("eval-base", *LIMITED)
    site.wait(outcome)
    run_dir = outcome.run_dir
    missing = [
        name for name in ("fig2.png", "fig3.png", "report.md", "done") if not (run_dir / name).exists()
    ]
    assert missing == [] and len(list(run_dir.glob("*/eval_summary_ckpt.json"))) == 2, logs(run_dir)
    assert "note: not trained of Table 1: Standard 12, " in outcome.err
