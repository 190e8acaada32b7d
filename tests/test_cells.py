"""Sweep files and their cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import config
from config.recipe import recipes
from config.sweep import Sweep, read_sweep
from errors import UserError
from tests.cells import FLAGS, folder_of, read, write_sweep

RATES = {"lr": [1e-3, 2e-3], "n_layer": [2, 4]}
NEEDED: dict[str, dict[str, Any]] = {
    "cotformer": {},
    "bytes": {},
    "gpt": {"depth": 4, "num-iterations": 10},
    "coalescence": {"dataset-path": "pairs", "model": "tiny_narrow"},
}


def lines(place: Path, **content: Any) -> list[str]:
    """What is wrong with a file, without its name."""
    with pytest.raises(UserError) as error:
        read(place, **content)
    return str(error.value).replace(f"{place / 'rates.json'}: ", "").splitlines()


def titles(sweep: Sweep) -> list[str]:
    return [cell.title for cell in sweep.cells]


def test_cells_are_all_combinations_with_the_seeds_innermost(tmp_path: Path) -> None:
    sweep = read(
        tmp_path, grid={"lr": [1e-3, 2e-3]}, list=[{"label": "a"}, {"label": "b", "n_layer": 3}], seeds=[0, 1]
    )
    rates = [
        f"{label} lr={rate} seed={seed}" for label in "ab" for rate in ("0.001", "0.002") for seed in (0, 1)
    ]
    assert titles(sweep) == rates


@pytest.mark.parametrize("name", NEEDED)
def test_words_of_a_cell_are_the_command_line_of_its_flags(name: str, tmp_path: Path) -> None:
    flags = {}
    for flag in recipes()[name].flags.values():
        if flag.name not in ("config", "selftest_resume") and flag.default is not None:
            flags[flag.name] = flag.default
    for key, value in NEEDED[name].items():
        flags[recipes()[name].flag_named(key)] = value
    (cell,) = read(tmp_path, recipe=name, flags=flags).cells
    assert vars(config.parse_args(cell.words)) == vars(cell.resolved().args)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NEEDED)
def test_a_cell_lives_where_its_words_do(name: str, tmp_path: Path) -> None:
    sweep = read(tmp_path, recipe=name, flags=NEEDED[name], grid={"lr": [0.01, 0.03]}, seeds=[0, 1])
    places = [config.experiment_folder(config.parse_args(cell.words)) for cell in sweep.cells]
    assert places == [folder_of(cell) for cell in sweep.cells]


@pytest.mark.parametrize("name", NEEDED)
def test_values_that_are_added_move_no_cell(name: str, tmp_path: Path) -> None:
    before = read(tmp_path, recipe=name, flags=NEEDED[name], grid={"lr": [0.01]}, seeds=[0])
    after = read(tmp_path, recipe=name, flags=NEEDED[name], grid={"lr": [0.02, 0.01]}, seeds=[1, 0, 42])
    assert folder_of(before.cells[0]) in {folder_of(cell) for cell in after.cells}


def test_more_draws_change_none_of_those_before(tmp_path: Path) -> None:
    flags = {"lr": {"log_uniform": [1e-4, 1e-2]}, "n_layer": {"integer": [2, 8]}}
    few = read(tmp_path, random={"count": 3, "flags": flags})
    many = read(tmp_path, random={"count": 9, "flags": {**flags, "n_layer": {"integer": [2, 8]}}})
    assert titles(many)[:3] == titles(few)


def test_a_draw_does_not_depend_on_the_other_flags(tmp_path: Path) -> None:
    rate = {"lr": {"log_uniform": [1e-4, 1e-2]}}
    alone = read(tmp_path, random={"count": 4, "flags": rate})
    both = read(tmp_path, random={"count": 4, "flags": {"dropout": {"uniform": [0, 0.2]}, **rate}})
    assert [cell.setting["lr"] for cell in both.cells] == [cell.setting["lr"] for cell in alone.cells]


def test_draws_are_within_their_bounds_and_reach_all_of_them(tmp_path: Path) -> None:
    sweep = read(tmp_path, random={"count": 200, "flags": {"n_layer": {"integer": [2, 5]}}})
    assert sorted(cell.setting["n_layer"] for cell in sweep.cells) == [2, 3, 4, 5]


def test_draws_on_a_logarithmic_scale_have_their_median_in_its_middle(tmp_path: Path) -> None:
    sweep = read(tmp_path, random={"count": 400, "flags": {"lr": {"log_uniform": [1e-4, 1e-2]}}})
    below = sum(cell.setting["lr"] < 1e-3 for cell in sweep.cells)
    assert 160 < below < 240


def test_a_draw_that_is_there_already_is_left_out_and_told(tmp_path: Path) -> None:
    sweep = read(tmp_path, random={"count": 5, "flags": {"opt": {"choice": ["adamw", "lion"]}}})
    assert (len(sweep.cells), len(sweep.notes)) == (2, 3)


def test_a_combination_that_cannot_work_is_a_problem_of_its_cell(tmp_path: Path) -> None:
    sweep = read(tmp_path, grid={"n_head": [4, 5]})
    assert [cell.resolved().problems for cell in sweep.cells] == [
        [],
        ["--n_embd 64 is not divisible by --n_head 5"],
    ]


def test_problems_of_a_cell_name_flags_as_the_file_does(tmp_path: Path) -> None:
    sweep = read(
        tmp_path, recipe="gpt", flags={"depth": 4, "num-iterations": 10}, grid={"head-dim": [64, 63]}
    )
    assert "--head-dim" in sweep.cells[1].resolved().problems[0]


def test_a_file_of_which_no_cell_can_be_trained_is_refused(tmp_path: Path) -> None:
    assert lines(tmp_path, grid={"n_head": [5, 7]}, seeds=[0, 1]) == [
        "n_head=5 seed=0 and 1 more: --n_embd 64 is not divisible by --n_head 5",
        "n_head=7 seed=0 and 1 more: --n_embd 64 is not divisible by --n_head 7",
    ]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    wrong = lines(tmp_path, grids={}, grid={"lrr": [1], "lr": ["fast"]}, seeds=[-1])
    assert wrong == [
        "unknown key 'grids' (did you mean grid?)",
        "grid: unknown key 'lrr' (did you mean lr?)",
        "grid: lr must be a number, not 'fast'",
        "seeds: seed must be at least 0, not -1",
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"grid": {}}, "grid is empty"),
        ({"grid": {"lr": []}}, "grid: lr must be a list of values, not []"),
        ({"grid": {"lr": [1e-3, 0.001]}}, "grid: lr has 0.001 twice"),
        ({"grid": {"lr": [float("nan")]}}, "grid: lr must be finite, not 'nan'"),
        ({"grid": {"seed": [0, 1]}}, "grid: give values of seed as 'seeds'"),
        ({"list": []}, "list must be a list with at least one entry, not []"),
        ({"list": [{"label": "a"}, {"label": "a"}]}, "list[1]: label 'a' stands twice"),
        ({"list": [{"lr": 1e-3}], "grid": {"lr": [1e-2]}}, "lr stands in list and in grid"),
        (
            {"recipe": "gtp"},
            "unknown recipe 'gtp' (did you mean gpt?); there are: cotformer, bytes, gpt, coalescence",
        ),
        ({"seeds": [1, 1]}, "seeds: seed has 1 twice"),
        ({"track": 3}, "track must be a text on one line, not 3"),
        ({"flags": {"selftest_resume": True}}, "flags: selftest_resume is no training"),
        ({"random": {"count": 2}}, "random: flags must say what is drawn"),
        (
            {"random": {"count": 0, "flags": {"lr": {"uniform": [0, 1]}}}},
            "random: count must be a whole number of at least 1, not 0",
        ),
        (
            {"random": {"count": 2, "flags": {"lr": {"log_uniform": [0, 1]}}}},
            "random: lr log_uniform must begin above 0, not at 0.0",
        ),
        (
            {"random": {"count": 2, "flags": {"lr": {"integer": [0, 1]}}}},
            "random: lr takes no integer; give uniform",
        ),
        (
            {"random": {"count": 10**9, "flags": {"lr": {"uniform": [0, 1]}}}},
            "1,000,000,000 cells are more than 10,000",
        ),
    ],
)
def test_bad_files(content: dict[str, Any], line: str, tmp_path: Path) -> None:
    assert lines(tmp_path, **content) == [line]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"grid": {"lr": [1]}, "grid": {"lr": [2]}}'])
def test_a_file_that_is_no_object_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"^\S*sweep\.json: .*JSON.*$"):
        read_sweep(path)


def test_cells_of_one_folder_are_refused(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, grid={"iterations": [10, 20]})
    assert line.startswith("cells 0 (iterations=10) and 1 (iterations=20) are one experiment")


def test_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    entries = [{"label": "model=but", "model": "cot"}, {"model": "but"}]
    (line,) = lines(tmp_path, list=entries)
    assert line == "cells 0 and 1 are both called model=but; label one of them otherwise"


def test_a_batch_that_is_only_cut_otherwise_is_the_same_cell(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, list=[{"batch_size": 8, "acc_steps": 2}, {"batch_size": 4, "acc_steps": 4}])
    assert "are one experiment" in line


def test_the_file_counts_above_the_places(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, flags={**FLAGS, "results_base_folder": "mine"})
    (cell,) = read_sweep(path, {"results_base_folder": "theirs"}).cells
    assert folder_of(cell).parts[0] == "mine"


def test_entries_of_a_list_are_one_dimension(tmp_path: Path) -> None:
    entries = [{"label": "a", "model": "base"}, {"label": "b", "model": "cot", "n_repeat": 3}]
    sweep = read(tmp_path, list=entries, grid=RATES)
    assert sweep.dimensions == {"label": ["a", "b"], **RATES}
