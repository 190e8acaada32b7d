"""python -m report: which row an evaluation belongs to, errors and intervals, verdicts, what differs,
damaged files.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.macs import count_macs
from report import render, rows
from report.__main__ import main
from report.collect import collect
from report.compare import Report, Result, compare, differences, verdict
from report.paper import paper_value, rerun_value
from tests import summaries
from tests.programs import PEER, ROOT, run
from tests.summaries import DEEP, evaluation, point, schedule, training, write

ALL_ROWS = [pytest.param(row, id=f"{row.table}: {row.label}") for row in rows.ROWS]


def report_on(folder: Path) -> Report:
    return compare(collect([folder]))


def filled(folder: Path) -> dict[tuple[str, str], Result]:
    """The rows that have an evaluation, by table and label."""
    return {
        (result.row.table, result.row.label): result for result in report_on(folder).results if result.group
    }


def cot(folder: Path, perplexity: float = 27.0, **changes: Any) -> Path:
    """An evaluation of the paper's CoTFormer 12x3."""
    return evaluation(folder, perplexity, **{"model": "cot", "n_layer": 12, "n_repeat": 3, **changes})


def trained_cot(
    folder: Path,
    perplexity: float = 27.0,
    *,
    recorded: dict[str, Any] | None = None,
    age: float = 0.0,
    evaluated: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A training of it, and its evaluation beside it, which may have settings of its own."""
    run = folder / "owt2" / "cot" / "run"
    trained = {"model": "cot", "n_layer": 12, "n_repeat": 3, **changes}
    training(run, recorded=recorded, **trained)
    return evaluation(
        folder / f"evaluated_{perplexity}",
        perplexity,
        age=age,
        checkpoint=str(run / "ckpt.pt"),
        **{**trained, **(evaluated or {})},
    )


def row_of(folder: Path) -> Result:
    return filled(folder)["Table 1", "CoTFormer 12x3"]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines that a call with exit code 2 prints on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()


# rows


@pytest.mark.parametrize("row", ALL_ROWS)
def test_each_row_takes_the_model_that_its_flags_describe(tmp_path: Path, row: rows.Row) -> None:
    args = {name: value for name, value in vars(row.args()).items() if name not in summaries.PAPER_FLAGS}
    evaluation(tmp_path, 25.0, **args, iterations=row.steps)
    assert (row.table, row.label) in filled(tmp_path)


@pytest.mark.parametrize("row", ALL_ROWS)
def test_each_row_of_the_paper_has_a_number(row: rows.Row) -> None:
    value, rerun = paper_value(row.paper).perplexity, rerun_value(row.rerun)
    assert value is not None or rerun is not None
    assert value is None or 23 < value < (42 if row.table == "Table 5" else 29)
    assert rerun is None or rerun.low < rerun.perplexity < rerun.high


def places(value: Any, path: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Where the numbers of a part of paper.json stand."""
    return (
        {path}
        if not isinstance(value, dict)
        else {place for key in value for place in places(value[key], (*path, key))}
    )


@pytest.mark.parametrize(
    ("table", "key", "left_out"),
    [
        ("Table 1", "table1", set()),
        ("Table 2", "table2", set()),
        ("Table 4", "table4_depth_embedding", set()),
        ("Section 5", "section5_60k", set()),
        ("Figure 2", "figure2_read_off", set()),
        ("Table 5", "table5_adaptive_methods_10k", set()),
        ("Table 6", "table6_pause_tokens", {("table6_pause_tokens", "pause_tokens_24")}),
    ],
)
def test_each_table_is_complete(table: str, key: str, left_out: set[tuple[str, ...]]) -> None:
    paper = json.loads((ROOT / "report" / "paper.json").read_text())
    assert {row.paper for row in rows.ROWS if row.table == table and row.paper} == places(
        paper[key], (key,)
    ) - left_out


def test_a_number_without_a_model_is_told_below_its_table(tmp_path: Path) -> None:
    evaluation(tmp_path, 26.0, model="base", n_layer=24)
    assert "The paper's 24 layers with pause tokens (25.05) are no model here." in render.markdown(
        report_on(tmp_path)
    )


def test_a_model_that_several_tables_show_fills_all(tmp_path: Path) -> None:
    evaluation(tmp_path, 24.4, model="cot", n_layer=24, n_repeat=5)
    assert set(filled(tmp_path)) == {(table, "CoTFormer 24x5") for table in ("Table 1", "Table 2", "Table 6")}


def test_what_differs_is_said_once_for_all_tables_that_show_a_model(tmp_path: Path) -> None:
    evaluation(tmp_path, 24.4, model="cot", n_layer=24, n_repeat=5)
    text = render.markdown(report_on(tmp_path))
    assert (
        "**Table 1, CoTFormer 24x5; Table 2, CoTFormer 24x5; Table 6, CoTFormer 24x5**" in text
        and text.count("instead of 3") == 1
    )


def test_a_row_without_a_number_of_the_paper_has_no_verdict(tmp_path: Path) -> None:
    cot(tmp_path, 26.3, n_repeat=15)
    (result,) = filled(tmp_path).values()
    assert (
        result.row.table,
        result.verdict,
        result.difference,
        result.rerun and result.rerun.perplexity,
    ) == ("Figure 2", "", None, 26.19)


@pytest.mark.parametrize(
    "row",
    [row for row in rows.ROWS if (rerun := rerun_value(row.rerun)) and rerun.gmacs],
    ids=lambda row: row.label,
)
def test_the_reruns_multiply_accumulates_are_those_that_are_counted(row: rows.Row) -> None:
    assert rerun_value(row.rerun).gmacs == round(count_macs(row.args(), 256) / 1e9, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(("iterations", "table"), [(40000, "Table 2"), (60000, "Section 5")])
def test_steps_tell_rows_of_one_architecture_apart(tmp_path: Path, iterations: int, table: str) -> None:
    evaluation(tmp_path, 24.0, model="lncot", iterations=iterations, **DEEP)
    assert table in {name for name, _ in filled(tmp_path)}
    assert {"Table 2": "Section 5", "Section 5": "Table 2"}[table] not in {
        name for name, _ in filled(tmp_path)
    }


def test_a_folders_name_plays_no_part(tmp_path: Path) -> None:
    cot(tmp_path / "standard_48_layers")
    assert set(filled(tmp_path)) == {("Table 1", "CoTFormer 12x3")}


@pytest.mark.parametrize(
    "change",
    [
        {"n_embd": 384},
        {"n_layer": 11},
        {"n_layer_begin": 1},
        {"n_repeat": 4},
        {"vocab_size": 256},
        {"model": "lncot"},
    ],
)
def test_another_architecture_is_listed_under_other_models(tmp_path: Path, change: dict[str, Any]) -> None:
    cot(tmp_path, **change)
    assert not filled(tmp_path)
    assert [other.reason for other in report_on(tmp_path).others] == ["no row of the paper"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"eval_sample_size": 1000}, "on a part of the validation split"),
        ({"itr": 20000}, "in the middle of the training: step 20,000 of 40,000"),
    ],
)
def test_an_evaluation_that_is_not_the_whole_one_fills_no_row(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    cot(tmp_path, **change)
    assert not filled(tmp_path)
    assert [other.reason for other in report_on(tmp_path).others] == [reason]


def test_reduced_compute_fills_no_row(tmp_path: Path) -> None:
    evaluation(
        tmp_path / "less", 27.0, model="adm", iterations=60000, eval_length_factor=[1, 0.5, 0.3, 0.1], **DEEP
    )
    evaluation(
        tmp_path / "full", 24.0, model="adm", iterations=60000, eval_length_factor=[1, 1, 1, 1], **DEEP
    )
    assert filled(tmp_path)["Section 5", "Adaptive, full compute, 60k steps"].group.perplexity == 24.0  # type: ignore[union-attr]


def test_threshold_routing_is_no_full_compute(tmp_path: Path) -> None:
    evaluation(tmp_path / "less", 24.0, model="adm", iterations=60000, routing="threshold", **DEEP)
    assert ("Section 5", "Adaptive, full compute, 60k steps") not in filled(tmp_path)


def test_an_evaluation_with_fewer_repeats_is_no_row_of_the_smaller_model(tmp_path: Path) -> None:
    checkpoint = tmp_path / "owt2" / "cot" / "run" / "ckpt.pt"
    training(checkpoint.parent, model="cot", n_layer=12, n_repeat=5)
    cot(tmp_path / "evaluations", checkpoint=str(checkpoint))
    assert not filled(tmp_path)
    assert report_on(tmp_path).others[0].reason == "evaluated as 12x3 layers, trained as 12x5 layers"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attention_window_length": 8}, "--attention_window_length 8 instead of None"),
        ({"bias": True}, "--bias True instead of False"),
        ({"positional_encoder": "none"}, "--positional_encoder none instead of rotary"),
        ({"halt_threshold": 0.5}, "--halt_threshold 0.5 instead of 0.999"),
        ({"dataset": "stdlib"}, "--dataset stdlib instead of owt2"),
    ],
)
def test_an_evaluation_under_changed_settings_is_not_the_models_own(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    trained_cot(tmp_path, 25.0, age=100)
    trained_cot(tmp_path, 31.0, evaluated=changes)
    assert row_of(tmp_path).group.perplexity == 25.0  # type: ignore[union-attr]
    assert [other.reason for other in report_on(tmp_path).others] == [f"evaluated with {told}"]


@pytest.mark.parametrize(
    "changes", [{"batch_size": 64}, {"acc_steps": 1}, {"device": "cuda"}, {"dataset": "/copy/openwebtext2"}]
)
def test_how_and_where_it_was_evaluated_plays_no_part(tmp_path: Path, changes: dict[str, Any]) -> None:
    trained_cot(tmp_path, evaluated=changes)
    assert row_of(tmp_path).differs == ("seeds 1 instead of 3",)


def test_another_precision_of_an_evaluation_is_a_remark(tmp_path: Path) -> None:
    trained_cot(tmp_path, evaluated={"dtype": "float32"})
    assert "seed 2 was evaluated with --dtype float32 instead of auto" in row_of(tmp_path).remarks


# several evaluations


def test_the_newest_evaluation_of_a_checkpoint_counts(tmp_path: Path) -> None:
    cot(tmp_path / "b_old", 29.0, age=100)
    cot(tmp_path / "a_new", 27.0)
    assert row_of(tmp_path).group.perplexity == 27.0  # type: ignore[union-attr]


def test_a_newer_partial_evaluation_does_not_replace_the_whole_one(tmp_path: Path) -> None:
    cot(tmp_path / "whole", 27.0, age=100)
    cot(tmp_path / "part", 29.0, eval_sample_size=1000)
    assert row_of(tmp_path).group.perplexity == 27.0  # type: ignore[union-attr]


def test_overlapping_folders_count_a_file_once(tmp_path: Path) -> None:
    cot(tmp_path / "a")
    assert len(collect([tmp_path, tmp_path / "a"]).evaluations) == 1


def test_seeds_are_averaged_with_their_standard_error(tmp_path: Path) -> None:
    for seed, perplexity in ((1, 27.0), (2, 27.3), (3, 27.6)):
        cot(tmp_path / str(seed), perplexity, seed=seed, data_seed=seed)
    cells = dict(zip(render.COLUMNS, render.cells(row_of(tmp_path)), strict=True))
    # 0.3 / sqrt(3) = 0.1732
    assert (cells["ours"], cells["SEM over seeds"], cells["seeds"]) == ("27.30", "0.17", "3")


def test_one_seed_has_an_interval_over_texts_and_no_error_over_seeds(tmp_path: Path) -> None:
    cot(tmp_path, 27.0, half=0.25)
    cells = dict(zip(render.COLUMNS, render.cells(row_of(tmp_path)), strict=True))
    assert (cells["95% interval over texts"], cells["SEM over seeds"]) == ("26.75 to 27.25", "")


def test_the_papers_and_the_reruns_errors_have_columns_of_their_own(tmp_path: Path) -> None:
    cot(tmp_path)
    cells = dict(zip(render.COLUMNS, render.cells(row_of(tmp_path)), strict=True))
    assert (cells["paper"], cells["paper's SEM over seeds"]) == ("27.07", "0.01")
    assert (cells["re-run"], cells["re-run's 95% interval over batches"]) == ("27.05", "26.40 to 27.71")


def test_models_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    cot(tmp_path / "a", 27.0, seed=1)
    cot(tmp_path / "b", 29.0, seed=2, lr=3e-3)
    assert row_of(tmp_path).group.perplexity == 27.0  # type: ignore[union-attr]
    assert [other.group.perplexity for other in report_on(tmp_path).others] == [29.0]


def test_another_cut_into_micro_batches_is_the_same_training(tmp_path: Path) -> None:
    cot(tmp_path / "a", seed=1, data_seed=1)
    cot(tmp_path / "b", seed=2, data_seed=2, batch_size=32, acc_steps=4)
    assert len(row_of(tmp_path).group.members) == 2  # type: ignore[union-attr]


def test_another_cut_is_another_training_where_the_loss_depends_on_it(tmp_path: Path) -> None:
    for seed, cut in ((1, (8, 16)), (2, (32, 4)), (3, (8, 16))):
        evaluation(
            tmp_path / str(seed),
            30.0,
            model="but_halting",
            n_layer=12,
            n_repeat=3,
            seed=seed,
            data_seed=seed,
            batch_size=cut[0],
            acc_steps=cut[1],
        )
    assert sorted(len(other.group.members) for other in report_on(tmp_path).others) == [1, 2]


def seeds(folder: Path, *recorded: dict[str, Any], **changes: Any) -> list[int]:
    """Sizes of the groups of as many trainings, each with its seed and with what its summary tells."""
    for seed, more in enumerate(recorded, 1):
        trained_cot(folder / str(seed), recorded=more, seed=seed, data_seed=seed, **changes)
    report = report_on(folder)
    found = [result.group for result in report.results if result.group] + [
        other.group for other in report.others
    ]
    return sorted(len(group.members) for group in found)


def test_extended_trainings_are_not_averaged_with_unbroken_ones(tmp_path: Path) -> None:
    assert seeds(tmp_path, {"schedule": schedule(0, 40000)}, {"schedule": schedule(0, 30000, 40000)}) == [
        1,
        1,
    ]


def test_trainings_that_were_extended_alike_are_averaged(tmp_path: Path) -> None:
    assert seeds(tmp_path, *[{"schedule": schedule(0, 30000, 40000)}] * 2) == [2]


def test_trainings_that_were_extended_at_other_steps_are_not_averaged(tmp_path: Path) -> None:
    assert seeds(
        tmp_path, {"schedule": schedule(0, 30000, 40000)}, {"schedule": schedule(0, 20000, 40000)}
    ) == [1, 1]


def test_summaries_with_and_without_a_schedule_are_averaged(tmp_path: Path) -> None:
    assert seeds(tmp_path, {}, {"schedule": schedule(0, 40000), "skipped_steps": []}) == [2]


def test_trainings_that_passed_over_steps_are_not_averaged(tmp_path: Path) -> None:
    assert seeds(tmp_path, {"skipped_steps": []}, {"skipped_steps": [7]}, {"skipped_steps": [7]}) == [1, 1, 1]


@pytest.mark.parametrize(
    ("steps", "told"),
    [([7], "1 step passed over (--on_bad_step skip)"), ([7, 8], "2 steps passed over (--on_bad_step skip)")],
)
def test_steps_that_were_passed_over_are_told(tmp_path: Path, steps: list[int], told: str) -> None:
    trained_cot(tmp_path, recorded={"skipped_steps": steps})
    assert told in row_of(tmp_path).differs


@pytest.mark.parametrize(
    ("steps", "told"),
    [((0, 30000, 40000), "at step 30,000"), ((0, 20000, 30000, 40000), "at steps 20,000 and 30,000")],
)
def test_an_extension_is_told_by_the_legs_of_the_schedule(
    tmp_path: Path, steps: tuple[int, ...], told: str
) -> None:
    """The last part of the training needs no --extend on its command line."""
    trained_cot(tmp_path, recorded={"schedule": schedule(*steps)})
    assert f"the schedule was extended ({told}) from a shorter training" in row_of(tmp_path).differs


def test_a_plan_that_was_rejoined_is_told(tmp_path: Path) -> None:
    legs = schedule(0, 30000, 40000)
    legs["legs"][1]["origin"] = 0
    trained_cot(tmp_path, recorded={"schedule": legs})
    assert (
        "the schedule was extended (at step 30,000 by rejoin) from a shorter training"
        in row_of(tmp_path).differs
    )


def test_extend_on_a_fresh_training_is_no_extension(tmp_path: Path) -> None:
    trained_cot(tmp_path, recorded={"schedule": schedule(0, 40000)}, extend="continue")
    assert row_of(tmp_path).differs == ("seeds 1 instead of 3",)


def test_warm_up_is_that_of_the_training_as_it_began(tmp_path: Path) -> None:
    """20% of 40,000, not of the 60,000 to which it was extended."""
    run = tmp_path / "owt2" / "lncot" / "run"
    training(run, model="lncot", iterations=60000, recorded={"schedule": schedule(0, 40000, 60000)}, **DEEP)
    evaluation(tmp_path, 24.0, model="lncot", iterations=60000, checkpoint=str(run / "ckpt.pt"), **DEEP)
    remarks = filled(tmp_path)["Section 5", "LN-CoTFormer, 60k steps"].remarks
    assert "warm-up 8,000 steps; the paper's for 60,000 steps is not recorded" in remarks


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ({"schedule": []}, "its training's schedule. is no JSON object"),
        ({"schedule": {}}, "its training's schedule.legs is missing"),
        ({"schedule": {"legs": [{"begin": 0}]}}, "legs[0].end is missing"),
        ({"skipped_steps": ["x"]}, "its training's skipped_steps is ['x']"),
    ],
)
def test_a_damaged_schedule_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recorded: dict[str, Any], said: str
) -> None:
    trained_cot(tmp_path, recorded=recorded)
    (line,) = refused([str(tmp_path)], capsys)
    assert said in line


# verdicts and differences


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [
        (27.07, (26.8, 27.2), "inside the interval"),
        (27.2, (26.8, 27.2), "inside the interval"),
        (26.8, (26.8, 27.2), "inside the interval"),
        (27.07, (27.5, 28.0), "outside by 0.43"),
        (27.07, (26.0, 26.5), "outside by 0.57"),
    ],
)
def test_verdict(value: float, interval: tuple[float, float], expected: str) -> None:
    assert verdict(value, interval) == expected


def test_verdict_and_difference_of_a_row(tmp_path: Path) -> None:
    cot(tmp_path, 28.0, half=0.5)  # paper: 27.07
    result = row_of(tmp_path)
    assert result.verdict == "outside by 0.43"
    assert result.difference == pytest.approx(0.93)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iterations": 30000}, "steps 30,000 instead of 40,000"),
        ({"dataset": "stdlib"}, "data stdlib instead of openwebtext2"),
        ({"sequence_length": 128}, "evaluated sequence length 128 instead of 256"),
    ],
)
def test_other_steps_data_or_lengths_are_not_comparable(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    cot(tmp_path, 27.07, **change)
    assert row_of(tmp_path).verdict == "not comparable"
    assert words in row_of(tmp_path).decisive


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"acc_steps": 8}, "effective batch 64 instead of 128"),
        ({"lr": 5e-4}, "peak learning rate 0.0005 instead of 0.001"),
        ({"warmup_percent": 0.05}, "warm-up steps 2000 instead of 8000"),
        ({}, "seeds 1 instead of 3"),
        ({"opt": "sgd"}, "optimiser sgd instead of adamw"),
        ({"dropout": 0.1}, "dropout 0.1 instead of the default 0.0"),
        ({"extend": "continue"}, "the schedule was extended (continue) from a shorter training"),
    ],
)
def test_other_settings_are_told(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    cot(tmp_path, **change)
    assert words in row_of(tmp_path).differs


def test_the_papers_own_setting_differs_in_the_seeds_alone(tmp_path: Path) -> None:
    cot(tmp_path)
    assert row_of(tmp_path).differs == ("seeds 1 instead of 3",)


@pytest.mark.parametrize(
    ("label", "change", "told"),
    [
        ("PonderNet", {"ponder_kl_div_loss_weight": 0.01}, "ponder_kl_div_loss_weight 0.01 instead of 0.2"),
        ("Mixture of Repeats", {"disable_ln_mid": False}, "disable_ln_mid False instead of True"),
        ("Stick breaking", {"batch_size": 8, "acc_steps": 16}, "acc_steps 16 instead of the default 4"),
        (
            "Stick breaking",
            {"depth_predictor_loss_coef": 1.0},
            "depth_predictor_loss_coef 1.0 instead of the default None",
        ),
    ],
)
def test_what_table_5_was_trained_with_is_its_setting(
    tmp_path: Path, label: str, change: dict[str, Any], told: str
) -> None:
    row = next(row for row in rows.ROWS if (row.table, row.label) == ("Table 5", label))
    args = {
        name: value
        for name, value in vars(row.args()).items()
        if name not in ("dataset", "iterations", "lr", "warmup_percent")
    }
    evaluation(tmp_path / "as published", 35.0, **args, iterations=10000)
    assert filled(tmp_path)["Table 5", label].differs == ("seeds 1 instead of 3",)
    evaluation(tmp_path / "changed", 30.0, **{**args, **change}, iterations=10000)
    (other,) = report_on(tmp_path).others
    assert (
        told in differences(row, other.group) and filled(tmp_path)["Table 5", label].group.perplexity == 35.0
    )  # type: ignore[union-attr]


def test_the_reruns_remarks_and_batches_stand_beside_its_values(tmp_path: Path) -> None:
    cot(tmp_path / "failed once", n_repeat=5)
    cot(tmp_path / "large batches", n_layer=24, n_repeat=2)
    text = render.markdown(report_on(tmp_path)).partition("<details>")[0]
    assert "- CoTFormer 12x5, re-run: a retraining: the first training of this model ended at 30.48" in text
    assert "| 24.68 to 25.90 (batches of 32) |" in text and "accuracy 0.4000; the re-run's is 0.4071" in text


def test_training_settings_come_from_the_trainings_summary(tmp_path: Path) -> None:
    """An evaluation with --batch_size 64 says nothing about the batch of the training; results may have
    been copied from elsewhere.
    """
    training(tmp_path / "exps" / "owt2" / "cot" / "run", model="cot", n_layer=12, n_repeat=3)
    cot(tmp_path / "evaluations", batch_size=64, checkpoint="/scratch/someone/exps/owt2/cot/run/ckpt.pt")
    assert row_of(tmp_path).differs == ("seeds 1 instead of 3",)
    assert any("2 processes" in line for line in row_of(tmp_path).remarks)


def test_depth_embedding_is_told_beside_table_2(tmp_path: Path) -> None:
    evaluation(tmp_path, 24.2, model="lncot", depth_embedding="linear_learned", **DEEP)
    found = filled(tmp_path)
    assert (
        "depth embedding linear_learned instead of none"
        in found["Table 2", "+ layer norm (LN-CoTFormer)"].differs
    )
    assert ("Table 4", "LN-CoTFormer, depth embedding") in found and (
        "Table 4",
        "LN-CoTFormer, no depth embedding",
    ) not in found


def test_routing_by_capacity_is_told_where_a_model_routes(tmp_path: Path) -> None:
    cot(tmp_path / "cot")
    evaluation(tmp_path / "adm", 24.0, model="adm", iterations=60000, **DEEP)
    told = {
        label: any("later tokens" in line for line in result.remarks)
        for (_, label), result in filled(tmp_path).items()
    }
    assert told == {"CoTFormer 12x3": False, "Adaptive, full compute, 60k steps": True}


# what is written


def test_markdown_latex_and_json_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cot(tmp_path / "in", 27.123)
    assert main([str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--name", "fidelity"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "fidelity.md",
        "fidelity.tex",
        "fidelity.json",
    }
    assert (tmp_path / "out" / "fidelity.md").read_text() == capsys.readouterr().out.removesuffix("\n")
    rows_written = json.loads((tmp_path / "out" / "fidelity.json").read_text())["rows"]
    assert [row["ours"]["perplexity"] for row in rows_written if row["ours"]] == [27.123]


def test_rows_without_an_evaluation_say_so(tmp_path: Path) -> None:
    cot(tmp_path)
    lines = render.markdown(report_on(tmp_path)).splitlines()
    assert sum("not evaluated" in line for line in lines) == len(rows.ROWS) - 1


def test_report_opens_with_the_models_that_were_evaluated(tmp_path: Path) -> None:
    cot(tmp_path / "row")
    cot(tmp_path / "other", n_embd=384)
    text = render.markdown(report_on(tmp_path))
    places = [
        text.index(part) for part in ("CoTFormer 12x3", "width 384", "## How to read this", "not evaluated")
    ]
    assert places == sorted(places) and places[0] < 700
    assert text.startswith("# Fidelity report\n\n## Models of the paper\n\n### Table 1\n\n| model | ours |")


@pytest.mark.parametrize("changes", [{"n_embd": 384}, {}])
def test_rows_that_were_not_evaluated_are_folded(tmp_path: Path, changes: dict[str, Any]) -> None:
    cot(tmp_path, **changes)
    before, _, folded = render.markdown(report_on(tmp_path)).partition("<details>")
    assert "not evaluated" not in before and folded.count("not evaluated") == len(rows.ROWS) - (not changes)
    assert folded.rstrip().endswith("</details>") and folded.count("</details>") == 1


def test_report_of_sweeps_alone_opens_with_them(tmp_path: Path) -> None:
    summaries.curve(tmp_path / "ppl_per_mac.json", "adm", [point(50_000_000_000, 29.5, threshold=0.9)], [])
    assert render.markdown(report_on(tmp_path)).startswith(
        "# Fidelity report\n\n## Perplexity against compute"
    )


def test_markdown_rows_have_as_many_cells_as_their_head(tmp_path: Path) -> None:
    cot(tmp_path / "a|b")
    cot(tmp_path / "x|y", n_embd=384)
    for table in re.findall(r"(?:^\|.*\n)+", render.markdown(report_on(tmp_path)), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_points_at_each_compute_budget_are_listed(tmp_path: Path) -> None:
    summaries.curve(
        tmp_path / "ppl_per_mac.json",
        "adm",
        [point(50_000_000_000, 29.5, threshold=0.9)],
        [point(45_940_000_000, 30.9, passes=1)],
    )
    text = render.markdown(report_on(tmp_path))
    assert "| router, scores of 0.9 and more | 50.00 | 29.50 | 29.20 to 29.80 |" in text
    assert "| fixed depth, 1 pass | 45.94 | 30.90 |" in text


def test_points_of_a_small_model_have_their_work_and_their_interval_against_full_depth(
    tmp_path: Path,
) -> None:
    summaries.curve(
        tmp_path / "ppl_per_mac.json", "adm", [], [point(4_500_000, 15.0, paired=0.001, passes=1)]
    )
    assert "| fixed depth, 1 pass | 0.0045 | 15.00 | 14.70 to 15.30 | 14.985 to 15.015 |" in render.markdown(
        report_on(tmp_path)
    )


def test_latex_specials_are_escaped() -> None:
    assert (
        render.escape_latex("a_b 5% $x$ #1 & {c} ~ ^ \\")
        == r"a\_b 5\% \$x\$ \#1 \& \{c\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_latex_table_is_well_formed(tmp_path: Path) -> None:
    cot(tmp_path)
    text = render.latex(report_on(tmp_path))
    assert text.count("{") == text.count("}")
    spec = re.search(r"\\begin\{tabular\}\{([lrc]+)\}", text)
    assert spec is not None
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(body) == len(rows.ROWS) + 1
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(spec[1])}


# bad input


def test_nothing_to_report_on_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([str(tmp_path)], capsys) == [
        f"python -m report: error: no eval_summary_*.json and no ppl_per_mac.json below {tmp_path}"
    ]


@pytest.mark.parametrize(
    "words",
    [[], ["/nowhere"], [str(Path(__file__))], [".", "--nam", "x"], [".", "--output"], [".", "--name", "a/b"]],
)
def test_bad_command_lines_are_refused_in_a_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(refused(words, capsys)) == 1


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{oh", "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ("{}", "args is missing"),
        ('{"args": {"model": "bert"}}', "args.model"),
        ('{"args": {"n_layer_begin": 99}}', "n_layer_begin"),
        ("[" * 100000, "cannot be read"),
    ],
)
def test_a_damaged_file_alone_is_named_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, part: str
) -> None:
    path = write(tmp_path / "eval_summary_x.json", content)
    (line,) = refused([str(tmp_path)], capsys)
    assert str(path) in line and part in line


@pytest.mark.parametrize("name", ["val_perplexity", "val_perplexity_ci95", "checkpoint", "n_tokens"])
def test_a_summary_that_lacks_a_number_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = cot(tmp_path, missing=(name,))
    assert refused([str(tmp_path)], capsys)[0].startswith(
        f"python -m report: error: {path}: {name} is missing"
    )


def test_a_number_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cot(tmp_path)
    path.write_text(path.read_text().replace('"val_perplexity": 27.0', '"val_perplexity": NaN'))
    assert "val_perplexity is nan" in refused([str(tmp_path)], capsys)[0]


def test_a_damaged_file_beside_good_ones_becomes_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cot(tmp_path / "good")
    bad = write(tmp_path / "bad" / "ppl_per_mac.json", "{}")
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0].startswith(f"warning: {bad}:")
    assert (
        "Files that could not be used" in shown.out
        and len(json.loads((tmp_path / "out" / "report.json").read_text())["problems"]) == 1
    )


def test_a_damaged_training_summary_becomes_a_note(tmp_path: Path) -> None:
    cot(tmp_path, checkpoint=str(tmp_path / "ckpt.pt"))
    write(tmp_path / "summary.json", "{")
    assert row_of(tmp_path).group is not None
    assert len(report_on(tmp_path).problems) == 1


def test_help_needs_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys\nfrom report.__main__ import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n   "
        " print(*sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "RESULTS_FOLDER" in shown and shown.splitlines()[-1] == ""


@pytest.mark.slow
def test_a_real_evaluation_is_reported_with_its_own_numbers(tmp_path: Path) -> None:
    """eval.py on two of the authors' checkpoints, then the report as a program."""
    for name in ("official_cot_res", "official_adm"):
        checkpoint = next(PEER.glob(f"exps/*/*/{name}/ckpt.pt"))
        done = run(
            [
                sys.executable,
                "eval.py",
                "--checkpoint",
                str(checkpoint),
                "--data_dir",
                str(PEER / "datasets"),
                "--device",
                "cpu",
                "--output_dir",
                str(tmp_path / "in" / name),
            ]
        )
        assert done.returncode == 0, done.stderr
    done = run([sys.executable, "-m", "report", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    others = json.loads((tmp_path / "out" / "report.json").read_text())["other_models"]
    losses = {other["model"]: other["evaluations"][0]["loss"] for other in others}
    assert losses == {
        "CoTFormer, 1+2x3+1 layers, width 32": pytest.approx(2.8797529, abs=1e-5),
        "Adaptive LN-CoTFormer, 1+2x3+1 layers, width 32": pytest.approx(2.7259412, abs=1e-5),
    }
    assert f"{math.exp(2.8797529):.2f}" in done.stdout and f"{math.exp(2.7259412):.2f}" in done.stdout


def test_an_evaluation_of_one_window_has_no_interval(tmp_path: Path) -> None:
    path = cot(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val_perplexity_ci95": None}))
    assert "none: one window" in render.markdown(report_on(tmp_path))


def test_two_trainings_of_one_seed_are_both_in_the_report(tmp_path: Path) -> None:
    cot(tmp_path / "v1", 24.07, age=60, checkpoint="/exps/owt2/cot/v1/ckpt.pt")
    cot(tmp_path / "v2", 24.06, checkpoint="/exps/owt2/cot/v2/ckpt.pt")
    report = report_on(tmp_path)
    (other,) = report.others
    assert other.group.first.perplexity == 24.07 and "the same seed was evaluated later" in other.reason


def test_of_one_checkpoint_the_newest_evaluation_alone_counts(tmp_path: Path) -> None:
    cot(tmp_path / "first", 24.07, age=60, checkpoint="/exps/owt2/cot/v1/ckpt.pt")
    cot(tmp_path / "again", 24.06, checkpoint="/exps/owt2/cot/v1/ckpt.pt")
    assert report_on(tmp_path).others == []
