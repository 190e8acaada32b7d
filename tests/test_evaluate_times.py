"""How times agree with the truth, by eval.py and on the page of the six checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eval as eval_door
from data.genomes.store import GenomeSplits, open_genomes
from data.genomes.windows import GenomeSet
from errors import UserError
from optim.coalescence.evaluate import evaluate_times, inputs_of, measures, spread
from optim.coalescence.inference import Drawing
from optim.coalescence.parts import Parts
from optim.coalescence.results import say_replaced
from report import coalescence
from report.__main__ import main as report
from tests.command_lines import code_of
from tests.genomes import COUNTS, WINDOWS, make_sets, network, saved

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("genomes"))


@pytest.fixture
def plain(sets: Path) -> GenomeSplits:
    return open_genomes(sets / "processed")


def test_all_pairs_and_each_scenario_are_measured(plain: GenomeSplits) -> None:
    found = evaluate_times(network(), plain, CPU, Drawing(2), None)
    assert set(found["scenarios"]) == set(COUNTS)
    assert sum(each["pairs"] for each in found["scenarios"].values()) == found["all"]["pairs"]
    assert found["all"]["pairs"] == len(plain.test)


def test_the_mean_of_the_training_set_is_what_errors_are_compared_with(plain: GenomeSplits) -> None:
    found = evaluate_times(network(), plain, CPU, Drawing(2), None)
    times = [plain.train.example(number).y.astype(np.float64) for number in range(len(plain.train))]
    truth = [plain.test.example(number).y.astype(np.float64) for number in range(len(plain.test))]
    assert found["train_mean"] == pytest.approx(np.mean(times))
    expected = np.mean((np.array(truth) - np.mean(times)) ** 2)
    assert found["all"]["mse_of_train_mean"] == pytest.approx(expected)


def test_perfect_draws_have_no_error() -> None:
    truth = np.random.default_rng(0).uniform(5, 12, (3, 7))
    found = measures(np.stack([truth, truth]), truth, 0.0)
    assert found["mse"] == 0 and found["r"] == pytest.approx(1) and found["inside_2_sd"] == 1


def test_some_pairs_are_spread_over_the_split() -> None:
    assert spread(100, 5).tolist() == [0, 25, 50, 74, 99]
    assert spread(3, None).tolist() == spread(3, 9).tolist() == [0, 1, 2]


def test_gaps_are_not_shown_to_a_network_that_was_trained_without(sets: Path) -> None:
    with pytest.raises(UserError, match="has gaps"):
        evaluate_times(network(), open_genomes(sets / "masked"), CPU, Drawing(2), 4)


def test_a_network_that_reads_missing_shares_is_told_that_nothing_is_missing(plain: GenomeSplits) -> None:
    x = inputs_of(network(mask_singletons=False), plain)(np.arange(3))
    assert x[:, 0, ..., 0] == pytest.approx(np.log1p(1), abs=1e-3)
    assert x[:, 1, ..., 0] == pytest.approx(np.log1p(np.e), abs=1e-3)
    untouched = GenomeSet(plain.test).batch(np.arange(3))["x"].numpy()
    assert (x[..., 1:] == untouched[..., 1:]).all()


def test_a_masked_set_says_itself_what_is_missing(sets: Path) -> None:
    masked = open_genomes(sets / "masked")
    x = inputs_of(network(mask_singletons=False), masked)(np.arange(3))
    assert (x == GenomeSet(masked.test).batch(np.arange(3))["x"].numpy()).all()


def test_a_set_of_another_form_is_one_line(plain: GenomeSplits) -> None:
    with pytest.raises(UserError, match=f"reads 9 windows, and .* has {WINDOWS}"):
        evaluate_times(network(windows=9), plain, CPU, Drawing(2), 4)


@pytest.mark.slow
def test_eval_and_the_page_of_its_results(tmp_path: Path, sets: Path, capsys) -> None:
    experiment = saved(tmp_path / "exps" / "set" / "tiny" / "tiny_broad", sets / "processed")
    words = ["--checkpoint", str(experiment), "--replicates", "2", "--test_pairs", "4", "--device", "cpu"]
    assert code_of(eval_door.main, words) == 0
    said = capsys.readouterr().out
    summary = json.loads((experiment / "eval_summary_ckpt.json").read_text())
    assert f"{summary['all']['mse']:.4f}" in said and all(name in said for name in COUNTS)
    assert summary["itr"] == 3 and not list(experiment.glob(".parts_*"))
    words = ["coalescence", str(tmp_path / "exps"), "--output", str(tmp_path / "page")]
    assert code_of(report, words) == 0
    page = (tmp_path / "page" / "coalescence.md").read_text()
    assert f"| broad | 4 | {summary['all']['mse']:.3f}" in page and summary["dataset"] in page
    html = (tmp_path / "page" / "coalescence.html").read_text()
    assert html.count("data:image/png;base64,") == 2 and "<script" not in html


def test_a_summary_of_other_data_is_named_before_it_is_replaced(tmp_path: Path, capsys) -> None:
    path = tmp_path / "eval_summary_ckpt.json"
    say_replaced(path, {"sha256": "one"})
    path.write_text(json.dumps({"data": {"sha256": "one"}, "dataset": "sets/first"}))
    say_replaced(path, {"sha256": "one"})
    assert capsys.readouterr().err == ""
    say_replaced(path, {"sha256": "other"})
    assert capsys.readouterr().err.startswith(f"note: {path} is of other data, sets/first, and will be repl")


def test_eval_finds_a_checkpoint_by_its_name_in_the_cache(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    saved(tmp_path / "mine", sets / "processed")
    (tmp_path / "mine" / "ckpt.pt").rename(tmp_path / "mine.ckpt")
    (tmp_path / "mine").rmdir()
    monkeypatch.setenv("CXT_CHECKPOINT_CACHE", str(tmp_path))
    words = ["--checkpoint", "mine", "--replicates", "1", "--test_pairs", "1", "--device", "cpu"]
    assert code_of(eval_door.main, words) == 0
    assert "all test pairs" in capsys.readouterr().out and (tmp_path / "eval_summary_mine.json").is_file()


def test_an_interrupted_evaluation_keeps_its_draws(tmp_path: Path, plain: GenomeSplits) -> None:
    parts, drawing = Parts(tmp_path, "these"), Drawing(2, rows=2)
    undisturbed = evaluate_times(network(), plain, CPU, drawing, 3)
    left = iter(range(WINDOWS + 1))  # of calls, the first batch's and one more

    def advanced(tokens: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_times(network(), plain, CPU, drawing, 3, parts, lambda total: advanced)
    assert len(list(parts.folder.iterdir())) == 1
    assert evaluate_times(network(), plain, CPU, drawing, 3, parts) == undisturbed
    assert len(list(parts.folder.iterdir())) == 3


def summary(label: str, mse: float, r: float, windows: int = 500) -> dict[str, Any]:
    values = {"pairs": 10, "windows": windows, "mse": mse, "mse_of_train_mean": 1.0, "r": r, "bias": 0.0}
    values |= {"inside_2_sd": 0.9, "inside": {"0.5": 0.4, "0.95": 0.9}, "ranks": [5, 5, 5]}
    return {
        "measures": "times",
        "all": values,
        "scenarios": {"constant": values},
        "checkpoint": f"/exps/set/tiny/{label}/ckpt.pt",
        "itr": 7,
    }


def page_of(folder: Path, **summaries: Any) -> str:
    for label, content in summaries.items():
        (folder / label).mkdir()
        (folder / label / "eval_summary_ckpt.json").write_text(json.dumps(content))
    assert code_of(coalescence.main, [str(folder), "--output", str(folder / "page")]) == 0
    return (folder / "page" / "coalescence.md").read_text()


def test_checkpoints_stand_in_the_order_of_their_graph(tmp_path: Path) -> None:
    page = page_of(tmp_path, **{label: summary(label, 0.5, 0.8) for label in reversed(coalescence.ORDER)})
    places = [page.index(f"\n| {label.replace('_', chr(92) + '_')} | 10 |") for label in coalescence.ORDER]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("mse", "r", "verdict"), [(0.69, 0.56, "yes"), (0.71, 0.9, "NO"), (0.1, 0.5, "NO"), (0.1, None, "NO")]
)
def test_the_bar_of_the_tiny_size(mse: float, r: float, verdict: str) -> None:
    one = coalescence.Evaluated("broad", Path(), summary("broad", mse, r))
    assert one.verdict().split()[0] == verdict


def test_only_the_published_size_is_compared_with_reported_values(tmp_path: Path) -> None:
    page = page_of(tmp_path, broad=summary("broad", 0.2, 0.9, 5000), narrow=summary("narrow", 0.3, 0.8))
    assert page.count(coalescence.NOT_COMPARABLE) == 1


def test_a_damaged_summary_is_named_and_left_out(tmp_path: Path, capsys) -> None:
    page = page_of(tmp_path, broad=summary("broad", 0.2, 0.9), narrow={"measures": "times"})
    assert "| broad | 10 |" in page and "| narrow | 10 |" not in page
    assert f"warning: {tmp_path}/narrow/eval_summary_ckpt.json cannot be used" in capsys.readouterr().err


def test_a_folder_without_evaluations_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "eval_summary_ckpt.json").write_text("{}")
    assert code_of(coalescence.main, [str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
