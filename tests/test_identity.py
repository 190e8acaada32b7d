"""What makes two trainings the same, and two evaluations: every flag's scope, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import config
from config.flags import FLAGS
from config.identity import changed_for_evaluation, differences, evaluation_of, is_full_compute, names_of
from config.schema import EVALUATION, IDENTITY, PLACE, SCHEDULE
from tests.programs import train, trained


def flags(**changes: Any) -> dict[str, Any]:
    return vars(config.add_defaults(changes))


def test_every_flag_has_a_scope() -> None:
    assert sorted(names_of(IDENTITY, SCHEDULE, EVALUATION, PLACE)) == sorted(FLAGS)


def test_only_the_length_of_a_run_is_left_to_extensions() -> None:
    assert names_of(SCHEDULE) == ("iterations", "extend")


def test_same_settings_are_the_same_training() -> None:
    assert differences(flags(), flags()) == []


def test_a_difference_is_told_with_both_values() -> None:
    assert differences(flags(lr=0.1), flags(lr=0.2)) == ["--lr: the checkpoint has 0.2, this run 0.1"]


@pytest.mark.parametrize("name", [name for name in names_of(IDENTITY) if name not in ("dataset", "model")])
def test_each_setting_of_identity_makes_another_training(name: str) -> None:
    then = {**flags(), name: 77}
    assert f"--{name}: the checkpoint has 77, this run {flags()[name]}" in differences(flags(), then)


@pytest.mark.parametrize("name", names_of(SCHEDULE, EVALUATION, PLACE))
def test_no_other_setting_makes_another_training(name: str) -> None:
    assert differences(flags(), {**flags(), name: "other"}) == []


def test_another_model_is_another_training() -> None:
    assert differences(flags(model="cot"), flags(model="but")) == [
        "--model: the checkpoint has but_full_depth, this run cotformer_full_depth"
    ]


def test_a_dataset_is_not_known_by_its_name() -> None:
    assert differences(flags(dataset="/a/owt2"), flags(dataset="openwebtext2")) == []


def test_what_an_older_file_does_not_say_had_its_default() -> None:
    older = flags()
    del older["halt_threshold"]
    line = f"--halt_threshold: the checkpoint has {flags()['halt_threshold']}, this run 0.25"
    assert differences(flags(halt_threshold=0.25), older) == [line]


def test_an_older_file_without_the_seed_of_its_data_took_the_one_seed() -> None:
    older = flags(seed=7)
    del older["data_seed"]
    assert differences(flags(seed=7), older) == []


def test_the_cut_of_a_batch_leaves_no_trace() -> None:
    assert differences(flags(batch_size=4, acc_steps=1), flags(batch_size=1, acc_steps=4)) == []


def test_the_cut_of_a_batch_is_told_where_the_loss_depends_on_it() -> None:
    wrong = differences(
        flags(model="but_halting", batch_size=4, acc_steps=1),
        flags(model="but_halting", batch_size=1, acc_steps=4),
    )
    assert wrong == [
        "--batch_size: the checkpoint has 1, this run 4",
        "--acc_steps: the checkpoint has 4, this run 1",
    ]


def test_another_effective_batch_is_told() -> None:
    assert differences(flags(batch_size=4, acc_steps=2), flags(batch_size=4, acc_steps=4)) == [
        "--acc_steps: the checkpoint has 4, this run 2"
    ]


def test_a_damaged_batch_is_told() -> None:
    assert differences(flags(), {**flags(), "batch_size": None}) == [
        "--batch_size: the checkpoint has None, this run 32"
    ]


@pytest.mark.slow
def test_finished_training_whose_loss_depends_on_the_cut_is_not_taken_for_another_cut(tmp_path: Path) -> None:
    asked = {"model": "but_halting", "iterations": 2, "depth_embedding": None}
    trained(tmp_path, batch_size=4, acc_steps=1, **asked)
    outcome = train(tmp_path, batch_size=1, acc_steps=4, **asked)
    assert outcome.returncode == 2
    assert (
        "is finished with other settings: --batch_size: the checkpoint has 4, this run 1; give that, or"
        " another --exp_name" in outcome.stderr
    )


# evaluations


@pytest.mark.parametrize("name", [name for name in names_of(IDENTITY, EVALUATION) if name != "dataset"])
def test_an_evaluation_is_known_by_every_setting_that_changes_its_numbers(name: str) -> None:
    assert evaluation_of({**flags(), name: "other"}) != evaluation_of(flags())


@pytest.mark.parametrize("name", names_of(SCHEDULE, PLACE))
def test_an_evaluation_is_not_known_by_where_it_ran(name: str) -> None:
    assert evaluation_of({**flags(), name: "other"}) == evaluation_of(flags())


def test_what_a_program_varies_is_left_out() -> None:
    assert "routing" not in evaluation_of(flags(), without=("routing",))


def test_a_setting_that_was_changed_for_an_evaluation_is_told() -> None:
    assert changed_for_evaluation(flags(attention_window_length=8), flags()) == {
        "attention_window_length": "--attention_window_length 8 instead of None"
    }


def test_an_evaluation_may_have_its_own_batches() -> None:
    assert changed_for_evaluation(flags(batch_size=64, model="but_halting"), flags(model="but_halting")) == {}


@pytest.mark.parametrize(
    ("model", "changes", "full"),
    [
        ("adm", {}, True),
        ("adm", {"eval_length_factor": [1.0, 1.0]}, True),
        ("adm", {"eval_length_factor": [1.0, 0.5]}, False),
        ("adm", {"routing": "threshold"}, False),
        ("cot", {"routing": "threshold"}, True),
        ("cot", {"n_repeat": 2}, False),
    ],
)
def test_full_compute_is_all_passes_for_every_token(model: str, changes: dict[str, Any], full: bool) -> None:
    settings = config.add_defaults({"model": model, "n_repeat": 3})
    assert is_full_compute(config.add_defaults({"model": model, "n_repeat": 3, **changes}), settings) is full
