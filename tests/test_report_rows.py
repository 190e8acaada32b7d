"""python -m report: which row an evaluation belongs to, and which evaluations are averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.macs import count_macs
from report import render, rows
from report.collect import collect
from report.paper import paper_value, rerun_value
from tests import summaries
from tests.programs import ROOT
from tests.reports import cot, filled, refused, report_on, row_of, trained_cot
from tests.summaries import DEEP, evaluation, schedule, training

ALL_ROWS = [pytest.param(row, id=f"{row.table}: {row.label}") for row in rows.ROWS]


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
