"""The paper's claims, judged by sweeps with made-up losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from config.sweep import Cell, read_sweep
from report.__main__ import main
from report.claims_cells import read_cells, seconds_by_the_clock, settings_of
from report.claims_found import common_range, mean_gain
from report.claims_list import CLAIMS, paper_gain
from report.verdicts import AGAINST, CONFIRMED, UNDECIDED
from tests.claims import MODELS, NOISE, fill, finding, folder_of, judged, noise, sweep_file, usual
from tests.programs import ROOT
from tests.reports import refused
from tests.summaries import curve, point, weights, write

COT_BUT = "CoTFormer beats block universal at equal repeats"
ALIKE = "LN-CoTFormer with depth embedding and standard with twice as many layers are alike"
AT_MACS = "Capacity routing, which sees later tokens, beats causal threshold routing, at equal MACs"
AT_SECONDS = "Capacity routing, which sees later tokens, beats causal threshold routing, at equal seconds"
ROUTED = "Routed LN-CoTFormer beats stopping all tokens"


def test_losses_as_the_papers_confirm_its_claims(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    fill(path)
    words = {one.claim.text: one.verdict.word for one in judged(path).tested if one.verdict.seeds}
    assert words[ALIKE] == AGAINST  # 0.05 nats are more than the margin
    del words[ALIKE]
    assert len(words) >= 9 and set(words.values()) == {CONFIRMED}


def test_the_difference_is_the_mean_over_pairs_of_one_seed(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    drift = {0: 0.0, 1: 1.0, 2: -1.0}  # of both models of a seed, far larger than their difference
    gains = {0: 0.10, 1: 0.11, 2: 0.12}

    def loss(cell: Cell) -> float:
        assert cell.seed is not None
        return 3 + drift[cell.seed] - gains[cell.seed] * (cell.label == "cot")

    fill(path, loss)
    found = finding(path, COT_BUT).verdict
    assert found.word == CONFIRMED and found.agree == 3
    assert found.differences == pytest.approx(gains)


def test_what_the_data_contradict_is_not_confirmed(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    fill(path, lambda cell: (3.0 if cell.label == "cot" else 2.9) + noise(cell))
    assert finding(path, COT_BUT).verdict.word == AGAINST


def test_an_interval_about_zero_is_undecided(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    fill(path, lambda cell: 3.0 + NOISE[cell.seed or 0] * (1 if cell.label == "cot" else -1))
    found = finding(path, COT_BUT).verdict
    assert found.word == UNDECIDED and not found.why


def test_a_cell_without_training_is_named_and_its_seed_does_not_count(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    fill(path, lambda cell: None if (cell.label, cell.seed) == ("cot", 1) else usual(cell))
    found = finding(path, COT_BUT)
    assert found.verdict.seeds == 2
    assert found.missing == ["seed 1: CoTFormer 3x2: not started"]


def test_a_finished_training_without_evaluation_is_named(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    fill(path)
    (folder_of(path, "but", 2) / "eval_summary_ckpt.json").unlink()
    (line,) = finding(path, COT_BUT).missing
    assert line.startswith("seed 2: Block Universal 3x2: no evaluation")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_training_that_diverged_is_named(tmp_path: Path, loss: float) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    fill(path, lambda cell: loss if (cell.label, cell.seed) == ("cot", 0) else usual(cell))
    found = finding(path, COT_BUT)
    assert found.missing == ["seed 0: CoTFormer 3x2: diverged: its loss is not finite"]
    assert found.verdict.seeds == 2


def test_an_unfinished_model_is_undecided_and_one_that_is_not_there_is_absent(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    found = judged(path)
    assert [one.verdict.word for one in found.tested if one.claim.text == COT_BUT] == [UNDECIDED]
    absent = {one.claim.text for one in found.absent}
    assert "Twice as many layers beat the standard model" in absent
    assert all(one.claim.text != "Twice as many layers beat the standard model" for one in found.tested)


def test_models_are_known_by_their_flags_and_not_by_labels(tmp_path: Path) -> None:
    entries = [{"label": "cot", **MODELS["but"]}, {"label": "but", **MODELS["cot"]}]
    path = sweep_file(tmp_path, [], entries=entries)
    fill(path)  # the CoTFormer has the loss of `but`
    assert finding(path, COT_BUT).verdict.word == AGAINST


def test_the_papers_difference_stands_beside_that_of_its_place(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    fill(path)
    found = finding(path, COT_BUT)
    assert found.paper is not None and found.paper[0] == pytest.approx(math.log(27.74 / 27.55))


def test_every_claim_has_a_value_of_the_paper() -> None:
    for claim in CLAIMS:
        assert any(paper_gain(claim.papers(1, pair)) for pair in claim.pairs((2, 3, 5))), claim.text


def test_the_paper_itself_agrees_with_its_claims() -> None:
    for claim in CLAIMS:
        for pair in claim.pairs((2, 3, 5)):
            gain = paper_gain(claim.papers(1, pair))
            if gain is not None:
                is_kept = abs(gain[0]) < claim.margin if claim.margin else gain[0] > 0
                assert is_kept, claim.text


def test_other_blocks_and_optimisers_have_the_same_claims_of_their_own(tmp_path: Path) -> None:
    entries = []
    for name in ("but", "cot"):
        entries.append({"label": f"{name} muon", **MODELS[name], "opt": "muon", "lr": 0.02})
    path = sweep_file(tmp_path, ["but", "cot"], entries=entries)

    def loss(cell: Cell) -> float:
        own = {"but": 3.0, "cot": 2.9, "but muon": 2.0, "cot muon": 2.1}[cell.label]
        return own + noise(cell)

    fill(path, loss)
    words = {one.setting.label: one.verdict.word for one in judged(path).tested if one.claim.text == COT_BUT}
    published, muon = words
    assert "opt adamw" in published and "opt muon" in muon and "lr 0.02" in muon
    assert list(words.values()) == [CONFIRMED, AGAINST]


def test_models_of_different_settings_are_not_compared_and_that_is_said(tmp_path: Path) -> None:
    entries = [{"label": "cot", **MODELS["cot"], "lr": 0.002}]
    path = sweep_file(tmp_path, ["but"], entries=entries)
    fill(path)
    found = judged(path)
    assert not [one for one in found.tested if one.claim.text == COT_BUT]
    absent = [one.why for one in found.absent if one.claim.text == COT_BUT and one.why]
    assert absent == ["both are in the sweep, but trained under different settings"]


def test_flags_of_the_model_make_no_setting_of_their_own(tmp_path: Path) -> None:
    """As in the published commands: --min_repeat, and how an adaptive model draws."""
    entries = [
        {"label": "n", **MODELS["n"]},
        {"label": "cot", **MODELS["cot"], "min_repeat": 2},
        {"label": "lncot", **MODELS["lncot"]},
        {"label": "adm", **MODELS["adm"], "depth_random_method": "uniform_random_range"},
    ]
    path = sweep_file(tmp_path, [], entries=entries)
    fill(path)
    (setting,) = settings_of(read_cells(read_sweep(path)))
    assert len(setting.kinds) == 4 and setting.label == ""


def test_a_model_without_its_norms_is_another_one(tmp_path: Path) -> None:
    path = sweep_file(
        tmp_path, ["cot"], entries=[{"label": "lncot", **MODELS["lncot"], "disable_ln_mid": True}]
    )
    fill(path)
    assert not [one for one in judged(path).tested if one.verdict.seeds]


def test_the_paper_size_tests_every_claim() -> None:
    assert judged(ROOT / "iridis" / "mini-repro" / "paper.json").absent == []


def test_longer_training_is_longer_than_that_of_the_same_models(tmp_path: Path) -> None:
    """Whatever else the sweep trains, and however short."""
    entries = [{"label": "n", **MODELS["n"], "iterations": 10}]
    for name in ("lncot", "adm"):
        entries.append({"label": f"{name} longer", **MODELS[name], "iterations": 60, "run_prefix": "longer"})
    path = sweep_file(tmp_path, ["lncot", "adm"], entries=entries)
    steps = {
        one.claim.where: one.setting.steps for one in judged(path).tested if one.first.startswith("lncot")
    }
    assert steps == {"Table 4": 40, "Section 5": 60}


def test_evaluations_of_different_texts_are_not_compared(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    fill(path)
    for label, digest in (("cot", "1"), ("but", "2")):
        summary = folder_of(path, label, 0) / "eval_summary_ckpt.json"
        text = {"tokens": 5, "sha256": digest}
        write(summary, {**json.loads(summary.read_text()), "data": text})
    assert finding(path, COT_BUT).missing == ["seed 0: evaluated on different texts"]


def test_seconds_by_the_clock_are_those_of_all_jobs_once(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"], seeds=[0])
    fill(path)
    for label, starts in (("but", (100.0, 200.0)), ("cot", (105.0,))):
        rows = [json.dumps({"seconds": 10.0, "started": start}) for start in starts]
        write(folder_of(path, label, 0) / "segments.jsonl", "\n".join(rows) + "\n")
    assert seconds_by_the_clock(read_cells(read_sweep(path))) == 15 + 10


def test_evaluations_of_different_length_are_not_compared(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["but", "cot"])
    fill(path)
    summary = folder_of(path, "cot", 0) / "eval_summary_ckpt.json"
    write(summary, {**json.loads(summary.read_text()), "n_tokens": 17})
    assert finding(path, COT_BUT).missing == ["seed 0: evaluated on different numbers of tokens"]


# curves


def test_a_mean_difference_of_curves_is_that_between_straight_lines() -> None:
    first, second = [(1.0, 3.0), (3.0, 1.0)], [(0.0, 4.0), (2.0, 3.0), (4.0, 3.0)]
    assert common_range(first, second) == (1.0, 3.0)
    # at 1: 3.5 - 3, at 2: 3 - 2, at 3: 3 - 1
    assert mean_gain(first, second, (1.0, 3.0)) == pytest.approx((0.75 + 1.5) / 2)


@pytest.mark.parametrize(("first", "second"), [([(1.0, 3.0)], [(2.0, 3.0), (3.0, 2.0)]), ([], [(1.0, 1.0)])])
def test_curves_without_a_common_range_have_none(first: Any, second: Any) -> None:
    assert common_range(first, second) is None


def routing(folder: Path, seed: int, seconds: float = 1.0) -> None:
    """Capacity is better by 0.1 and more; its seconds are those of threshold, times `seconds`."""
    rows = []
    for budget in (0.4, 0.7, 1.0):
        common = {"budget": budget, "macs": 1e6 * budget}
        loss = 3 - budget + NOISE[seed]
        rows.append({**common, "routing": "capacity", "seconds": seconds * budget, "loss": loss})
        rows.append({**common, "routing": "threshold", "seconds": budget, "loss": loss + 0.1 + 0.01 * seed})
    write(folder / "routing.json", {"rows": rows})


def test_threshold_routing_stands_beside_capacity_at_equal_macs_and_seconds(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["adm"])
    fill(path)
    for seed in (0, 1, 2):
        routing(folder_of(path, "adm", seed), seed, seconds=1.2)
    at_macs, at_seconds = finding(path, AT_MACS), finding(path, AT_SECONDS)
    assert at_macs.verdict.word == CONFIRMED and at_macs.verdict.mean == pytest.approx(0.11)
    assert at_seconds.verdict.mean is not None and at_seconds.verdict.mean < 0.11
    assert "seconds for 1,000 tokens" in at_seconds.remark


def test_no_common_range_of_seconds_is_said(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["adm"])
    fill(path)
    routing(folder_of(path, "adm", 0), 0, seconds=100)
    found = finding(path, AT_SECONDS)
    assert found.verdict.word == UNDECIDED
    assert found.missing[0] == "seed 0: the curves have no common range of seconds"
    assert found.missing[1] == "seed 1: not measured at several costs"


def budgets(folder: Path, seed: int) -> None:
    """The router is better by 0.1 nats and more at every cost that both have."""
    below = math.exp(0.1 + 0.01 * seed)
    router = [point(10**6, 20 / below, threshold=0.9), point(3 * 10**6, 18 / below, threshold=0.0)]
    fixed = [point(10**6, 20, passes=1), point(3 * 10**6, 18, passes=2)]
    curve(folder / "ppl_per_mac.json", "adm", router, fixed)


def test_routers_are_judged_by_their_curves(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, ["adm"])
    fill(path)
    for seed in (0, 1, 2):
        budgets(folder_of(path, "adm", seed), seed)
    found = finding(path, ROUTED).verdict
    assert found.word == CONFIRMED and found.mean == pytest.approx(0.11)


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"rows": 5}', '{"rows": [{"routing": "capacity", "macs": "x", "loss": 1}]}']
)
def test_a_damaged_routing_file_is_named(tmp_path: Path, content: str) -> None:
    path = sweep_file(tmp_path, ["adm"], seeds=[0])
    fill(path)
    write(folder_of(path, "adm", 0) / "routing.json", content)
    (one,) = read_cells(read_sweep(path))
    (note,) = one.notes
    assert "routing.json" in note and one.evaluation is not None


# the page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a page with everything on it."""
    folder = tmp_path_factory.mktemp("page")
    entries = [{"label": "cot <b>&", **MODELS["cot"], "opt": "muon", "lr": 0.02}]
    path = sweep_file(folder, entries=entries)
    fill(
        path,
        lambda cell: (
            None if (cell.label, cell.seed) == ("2n", 2) else 2.5 if "&" in cell.label else usual(cell)
        ),
    )
    for seed in (0, 1, 2):
        place = folder_of(path, "adm", seed)
        routing(place, seed)
        budgets(place, seed)
        weights(place / "router_weights.npz", [[0.1], [0.5], [0.7]])
    overlap = {"window_tokens": 50, "windows": 1000, "shared_windows": 7, "share": 0.007}
    write(folder / "text.json", {"dataset": "words", "train_tokens": 12345, "overlap": overlap})
    assert main(["claims", str(path), "--output", str(folder / "out")]) == 0
    return folder / "out"


@pytest.mark.slow
def test_the_page_names_what_is_missing_and_what_was_read(page: Path) -> None:
    text = (page / "claims.md").read_text()
    assert "- 2n seed=2: not started" in text
    assert (
        "train 12,345 tokens" in text
        and "7 of 1,000 windows of 50 tokens, 0.700%" in text
        and "0123456789ab" in text
    )
    assert "a token is a byte" in text


@pytest.mark.slow
def test_the_html_page_needs_nothing_else(page: Path) -> None:
    text = (page / "claims.html").read_text()
    assert text.count("<img ") == text.count('src="data:image/png;base64,') >= 3
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text
    assert "prefers-color-scheme:dark" in text


@pytest.mark.slow
def test_labels_are_text_on_the_html_page(page: Path) -> None:
    assert "<b>" not in (page / "claims.html").read_text()


@pytest.mark.slow
def test_verdicts_are_written_as_data(page: Path) -> None:
    content = json.loads((page / "claims.json").read_text())
    (one,) = (one for one in content["tested"] if one["claim"] == COT_BUT)
    assert one["verdict"] == CONFIRMED and one["mean"] == pytest.approx(0.1, abs=0.01)
    assert set(one["differences"]) == {"0", "1", "2"} and one["seeds"] == 3
    assert len(content["trainings"]) == 21


@pytest.mark.parametrize("content", ["{", "[]", '{"list": 5}'])
def test_what_is_no_sweep_is_refused_and_nothing_written(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "no.json", content)
    assert refused(["claims", str(path), "--output", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_two_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep_file(tmp_path)
    (line,) = refused(["claims", str(path), str(path)], capsys)
    assert "one SWEEP.json, not 2" in line


def test_a_sweep_of_other_models_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "gpt.json", {"recipe": "gpt", "seeds": [0]})
    (line,) = refused(["claims", str(path), "--output", str(tmp_path / "out")], capsys)
    assert "recipe gpt trains no models of the paper's" in line


def test_a_damaged_text_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep_file(tmp_path, ["cot"])
    write(tmp_path / "text.json", "[1]")
    (line,) = refused(["claims", str(path), "--output", str(tmp_path / "out")], capsys)
    assert "text.json" in line


def test_reserved_layers_may_be_before_the_loop_alone(tmp_path: Path) -> None:
    entries = []
    for name in ("lncot", "adm"):
        entries.append({"label": name, **MODELS[name], "n_layer": 3, "n_layer_end": 0})
    path = sweep_file(tmp_path, ["cot"], entries=entries)
    fill(path)
    assert finding(path, "LN-CoTFormer with depth embedding beats CoTFormer").verdict.word == CONFIRMED
