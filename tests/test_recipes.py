"""The recipe word of main.py, and what a recipe may declare: groups of flags, defaults, spellings, checks."""

from __future__ import annotations

from argparse import Namespace

import pytest

import config
import recipes
from config.flags import FLAGS, GROUPS
from config.identity import differences, fingerprint
from config.recipe import Recipe
from config.schema import Flag
from config.values import Problem
from errors import UserError
from tests.command_lines import config_file, refused

OWN = (Flag("angle_base", float, 10000.0, "base of the rotary angles"), Flag("note", str, None, "a text"))
SPELLINGS = {
    "device-batch-size": "batch_size",
    "weight-decay": "weight_decay",
    "V": "vocab_size",
    "L": "n_layer",
}


def no_thirteen(args: Namespace) -> list[Problem]:
    return [Problem("--n_layer must not be 13", "n_layer")] if args.n_layer == 13 else []


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A second recipe, as a module of recipes/ would declare it."""
    recipe = Recipe(
        name="other",
        help="something else",
        groups={**GROUPS, "own": OWN},
        defaults={"n_layer": 7, "vocab_size": 256},
        spellings=SPELLINGS,
        selftest={"n_layer": 2},
        check=no_thirteen,
    )
    monkeypatch.setitem(recipes.RECIPES, "other", recipe)
    return recipe


def test_the_default_recipe_may_be_named():
    assert config.parse_args(["cotformer", "--n_layer", "6"]) == config.parse_args(["--n_layer", "6"])


def test_the_default_recipe_is_not_recorded():
    assert "recipe" not in vars(config.parse_args(["cotformer"]))


def test_the_default_recipe_has_all_flags_in_their_order():
    assert list(recipes.RECIPES["cotformer"].flags.items()) == list(FLAGS.items())


@pytest.mark.parametrize("word", ["cotforme", "otherr", ""])
def test_unknown_recipe_is_told_in_one_line_with_choices_and_the_nearest(word, other, capsys):
    near = {"cotforme": " (did you mean cotformer?)", "otherr": " (did you mean other?)"}.get(word, "")
    assert refused(capsys, word, "--n_layers", "x") == [
        f"main.py: error: unknown recipe {word!r}{near}; there are: cotformer, bytes, gpt, coalescence, other"
    ]


def test_recipe_word_after_flags_is_refused(capsys):
    assert refused(capsys, "--n_layer", "6", "cotformer") == [
        "main.py: error: unexpected argument 'cotformer': a recipe's name stands before all flags"
    ]


def test_recipe_that_is_not_the_default_is_recorded(other):
    assert config.parse_args(["other"]).recipe == "other"


def test_recorded_flags_keep_their_recipe(other):
    args = vars(config.parse_args(["other", "--angle_base", "5"]))
    assert config.recorded(args) == args


def test_recorded_recipe_that_is_unknown_is_told():
    with pytest.raises(UserError, match="recipe 'lost' is not known here"):
        config.recorded({"recipe": "lost"})


def test_recipe_has_its_own_flags_and_defaults(other):
    args = config.parse_args(["other"])
    assert (args.n_layer, args.vocab_size, args.angle_base) == (7, 256, 10000.0)
    assert config.parse_args([]).n_layer == FLAGS["n_layer"].default


def test_name_shows_what_differs_from_the_recipes_defaults(other):
    args = config.parse_args(["other", "--angle_base", "5", "--n_layer", "7"])
    assert config.experiment_name(args) == "lr0.001_bs32x4_seqlen512_angle_base=5.0_seed2"


def test_flags_of_a_recipe_are_unknown_to_others(other, capsys):
    assert refused(capsys, "--angle_base", "5")[0].startswith("main.py: error: unknown flag --angle_base")


def test_recipe_checks_its_own_combinations(other, capsys):
    assert refused(capsys, "other", "--n_layer", "13") == ["main.py: error: --n_layer must not be 13"]


def test_selftest_takes_the_recipes_settings(other):
    assert config.parse_args(["other", "--selftest_resume"]).n_layer == 2


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--device-batch-size", "4"], "batch_size", 4),
        (["--device_batch_size=4"], "batch_size", 4),
        (["--weight-decay", "0.5"], "weight_decay", 0.5),
        (["--weight_decay", "0.5"], "weight_decay", 0.5),
        (["--V", "300"], "vocab_size", 300),
        (["--angle-base", "5"], "angle_base", 5.0),
    ],
)
def test_spelling_means_its_flag(other, words, name, value):
    assert getattr(config.parse_args(["other", *words]), name) == value


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--L", "13"], "--L must not be 13"),
        (["--L=13"], "--L must not be 13"),
        (["--n_layer", "13"], "--n_layer must not be 13"),
        (["--V", "100", "--n_layer", "13"], "--n_layer must not be 13"),
    ],
)
def test_a_rule_names_a_flag_as_the_command_line_does(other, words, line, capsys):
    assert refused(capsys, "other", *words) == [f"main.py: error: {line}"]


def test_a_later_line_names_flags_as_the_command_line_does(other):
    worded = config.as_written(["other", "--L", "2", "--angle-base", "3", "--weight-decay=1"])
    assert worded("--n_layer 2, --n_layer_begin 1, --angle_base: not --weight_decay") == (
        "--L 2, --n_layer_begin 1, --angle-base: not --weight-decay"
    )


def test_config_file_takes_spellings(other, tmp_path):
    path = config_file(tmp_path, {"model": {"V": 300}, "train": {"device_batch_size": 4}})
    args = config.parse_args(["other", "--config", str(path)])
    assert (args.vocab_size, args.batch_size) == (300, 4)


def test_two_spellings_with_two_values_in_a_config_file_are_refused(other, tmp_path, capsys):
    path = config_file(tmp_path, {"model": {"V": 300}, "data": {"vocab_size": 400}})
    assert refused(capsys, "other", "--config", path) == [
        f"main.py: error: --config {path}: vocab_size is 300 in section 'model' and 400 in section 'data'"
    ]


def test_help_names_spellings(other, capsys):
    with pytest.raises(SystemExit):
        config.parse_args(["other", "--help"])
    assert "(also --device-batch-size)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("spellings", "said"),
    [
        ({"weight-decay": "lr"}, "'weight-decay' means lr and weight_decay"),
        ({"a-b": "lr", "a_b": "seed"}, "'a-b' means lr and seed"),
        ({"a-b": "nothing"}, "'nothing' is no flag of it"),
    ],
)
def test_spelling_that_means_two_things_cannot_be_declared(spellings, said):
    with pytest.raises(ValueError, match=said):
        Recipe("other", "", GROUPS, spellings=spellings)


def test_default_of_an_unknown_flag_cannot_be_declared():
    with pytest.raises(ValueError, match="'nothing' is no flag of it"):
        Recipe("other", "", GROUPS, defaults={"nothing": 1})


def test_another_recipe_is_another_training(other):
    mine, theirs = vars(config.parse_args(["other"])), vars(config.parse_args([]))
    assert differences(mine, theirs) == ["the checkpoint is of recipe cotformer, this run of other"]


def test_another_value_is_told_in_the_spelling_of_the_recipe(other):
    mine, theirs = vars(config.parse_args(["other", "--n_layer", "3"])), vars(config.parse_args(["other"]))
    assert differences(mine, theirs) == ["--L: the checkpoint has 7, this run 3"]


def test_another_recipe_has_another_fingerprint(other):
    args = vars(config.parse_args(["other"]))
    assert fingerprint(args, {}) != fingerprint({k: v for k, v in args.items() if k != "recipe"}, {})
