"""The recipe of the byte GPT: its names on the command line, the sections of its config files, presets."""

from __future__ import annotations

import contextlib
import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

import config
from config.identity import differences
from data.sources import Wanted
from optim.selftest import Training, make_up
from tests.command_lines import config_file, refused
from tests.programs import ROOT

PRESETS = ROOT / "recipes" / "presets"


def parsed(*words: object) -> Namespace:
    return config.parse_args(["bytes", *map(str, words)])


def read(tmp_path: Path, content: Any, *words: object) -> Namespace:
    return parsed("--config", config_file(tmp_path, content), *words)


def told(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, *words: object) -> list[str]:
    """What is said of a config file that is refused."""
    path = config_file(tmp_path, content)
    prefix = f"main.py: error: --config {path}: "
    return [line.removeprefix(prefix) for line in refused(capsys, "bytes", "--config", path, *words)]


# the command line


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--V", "300"], "vocab_size", 300),
        (["--d-ff", "64"], "mlp_width", 64),
        (["--rope_theta", "500"], "rope_base", 500.0),
        (["--total-steps", "40"], "iterations", 40),
        (["--p_train", "wiki=1"], "dataset", "wiki=1"),
        (["--resume", "latest.pt"], "use_pretrained", "auto"),
        (["--resume", "step_0000008.pt"], "use_pretrained", "ckpt_8.pt"),
        (["--resume", "step_12345678.pt"], "use_pretrained", "ckpt_12345678.pt"),
        (["--resume", "old/latest.pt"], "use_pretrained", "old/latest.pt"),
        (["--use_pretrained", "none"], "use_pretrained", None),
        (["--track", "none"], "track", None),
        (["--V", "300", "--vocab_size", "400"], "vocab_size", 400),
    ],
)
def test_its_names_mean_flags(words: list[str], name: str, value: object) -> None:
    assert getattr(parsed(*words), name) == value


def test_latest_means_the_newest_in_this_recipe_only() -> None:
    assert config.parse_args(["--use_pretrained", "latest.pt"]).use_pretrained == "latest.pt"


def test_its_names_are_unknown_to_the_default_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "--total_steps", "4")
    assert line.startswith("main.py: error: unknown flag --total_steps")


def test_models_with_recurrent_depth_are_its_too() -> None:
    args = parsed("--model", "lncot", "--n_layer_begin", 1, "--n_layer_end", 1, "--n_repeat", 3)
    assert (args.model, args.mlp_bias) == ("cotformer_full_depth_lnmid_depthemb", True)


def test_built_name_shows_what_differs_from_its_defaults() -> None:
    assert config.experiment_name(parsed("--C", 64)) == "lr0.0003_bs32x1_seqlen256_n_embd=64_seed42"


@pytest.mark.parametrize(
    ("dataset", "track"),
    [("roam=0.5,wiki=0.5", "val_loss@wiki"), ("code=0.5,docs=0.5", "val_loss@code"), ("code", "val_loss")],
)
def test_what_is_tracked_follows_the_dataset(dataset: str, track: str) -> None:
    assert config.parse_args(["bytes", "--p_train", dataset]).track == track


def test_nothing_is_tracked_where_that_is_asked_for() -> None:
    assert config.parse_args(["bytes", "--track", "none"]).track is None


def test_tracked_source_must_be_in_the_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bytes", "--p_train", "code=0.5,docs=0.5", "--track", "val_loss@wiki")
    (line,) = refused(capsys, *words)
    assert "--track val_loss@wiki: nothing measures that; there are: val_loss@code" in line


@pytest.mark.parametrize(
    ("flag", "called"),
    [
        ("--B", "--B (batch_size)"),
        ("--batch_size", "--batch_size"),
        ("--total-steps", "--total-steps (iterations)"),
    ],
)
def test_a_problem_names_the_flag_as_it_was_written(
    capsys: pytest.CaptureFixture[str], flag: str, called: str
) -> None:
    (line,) = refused(capsys, "bytes", flag, "-1")
    assert line.startswith(f"main.py: error: {called} must be at least ")


@pytest.mark.parametrize("flag", ["--dataset", "--p_train"])
def test_a_mixture_may_be_a_json_object(flag: str) -> None:
    assert parsed(flag, '{"wiki": 0.75, "book": 0.25}').dataset == "wiki=0.75,book=0.25"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('{"wiki": 0.5', "is no JSON object of names and weights"),
        ('{"wiki": 0.5, "wiki": 0.6}', "stands twice in one object"),
        ('{"wiki": "much"}', "must give a number as the weight of wiki"),
        ("wiki=0.5,/abs/notes=0.5", "sources of a mixture are names of folders below --data_dir, not paths"),
    ],
)
def test_a_mixture_that_is_none_is_one_line(
    capsys: pytest.CaptureFixture[str], value: str, said: str
) -> None:
    (line,) = refused(capsys, "bytes", "--dataset", value)
    assert said in line


def test_weights_are_checked_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "bytes", "--p_train", "wiki=0.7,roam=0.2")
    assert "the weights of the mixture sum to 0.9, not to 1" in line


def test_help_shows_its_names_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "optimiser steps in all (not epochs) [20000] (also --total_steps)" in text


def test_what_an_optional_setting_is_off_stays_so_when_it_is_recorded() -> None:
    args = vars(parsed("--track", "none", "--ckpt_every", "none"))
    assert config.recorded(args)["track"] is None


def test_selftest_starts_trainings_of_this_recipe(tmp_path: Path) -> None:
    args = parsed("--selftest_resume")
    command = Training(args, tmp_path, 1).command
    given = config.parse_args(command[command.index(str(ROOT / "main.py")) + 1 :])
    assert differences(vars(given), vars(args)) == []


def test_selftest_makes_up_each_source_of_its_mixture(tmp_path: Path) -> None:
    args = parsed("--selftest_resume")
    make_up(args, tmp_path)
    args.data_dir = str(tmp_path)
    assert Wanted.of(vars(args)).lacking() == [] and len(list(tmp_path.iterdir())) == 2


def test_settings_that_differ_are_told_by_its_names() -> None:
    now, then = vars(parsed("--C", 64, "--dropout", 0)), vars(parsed())
    assert differences(now, then) == ["C: loaded=256, current=64", "dropout: loaded=0.1, current=0.0"]


# config files


def test_flags_beyond_its_loop_have_a_section(tmp_path: Path) -> None:
    args = read(tmp_path, {"model": {"L": 2}, "flags": {"model": "cot", "dtype": "bfloat16", "n_repeat": 3}})
    assert (args.n_layer, args.model, args.n_repeat) == (2, "cotformer_full_depth", 3)


def test_null_of_its_names_is_the_default(tmp_path: Path) -> None:
    args = read(tmp_path, {"model": {"d_ff": None}, "train": {"p_train": None, "ckpt_every": None}})
    assert args == parsed("--config", tmp_path / "settings.json")
    assert (args.mlp_width, args.save_checkpoint_freq) == (1024, 1000)


def test_null_of_a_flag_is_a_value(tmp_path: Path) -> None:
    args = read(tmp_path, {"flags": {"mlp_width": None, "track": None, "init_from": None}})
    assert (args.mlp_width, args.track, args.init_from) == (None, None, None)


def test_mixture_is_an_object_or_its_text(tmp_path: Path) -> None:
    by_object = read(tmp_path, {"train": {"p_train": {"wiki": 0.5, "b": 0.5}}}).dataset
    assert by_object == read(tmp_path, {"train": {"p_train": "wiki=0.5,b=0.5"}}).dataset == "wiki=0.5,b=0.5"


def test_unknown_keys_of_all_places_are_listed_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "modle": {"C": 8},
        "seed": 1,
        "model": {"n_layer": 2, "z": None, "bias": True},
        "train": {"C": 8, "d-ff": 3},
        "flags": {"zzzz": 1},
    }
    assert told(tmp_path, capsys, content) == [
        "unknown key 'modle' (did you mean model?)",
        "unknown key 'seed' (did you mean seed in section 'train'?)",
        "unknown key 'n_layer' in section 'model' (did you mean L in section 'model'?)",
        "unknown key 'z' in section 'model'",
        "unknown key 'bias' in section 'model' (flags stand in section 'flags')",
        "unknown key 'C' in section 'train' (did you mean C in section 'model'?)",
        "unknown key 'd-ff' in section 'train' (did you mean d_ff in section 'model'?)",
        "unknown key 'zzzz' in section 'flags'",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"train": {"B": "x"}}, "B in section 'train' must be a whole number, not 'x'"),
        ({"train": {"B": [4]}}, "B in section 'train' takes one value, not [4]"),
        ({"train": {"B": {"C": 4}}}, "B in section 'train' takes one value, not {\"C\": 4}"),
        ({"model": {"L": 2.5}}, "L in section 'model' must be a whole number, not '2.5'"),
        ({"model": {"L": True}}, "L in section 'model' must be a whole number, not 'True'"),
        ({"model": 5}, "section 'model' must be an object of settings, not 5"),
        ({"train": None}, "section 'train' must be an object of settings, not null"),
        ({"train": {"p_train": ["wiki"]}}, "p_train in section 'train' takes one value, not [\"wiki\"]"),
        ({"train": {"p_train": {}}}, "p_train in section 'train' names no source"),
        (
            {"train": {"p_train": {"wiki": "0.5"}}},
            "p_train in section 'train' must give a number as the weight of wiki, not \"0.5\"",
        ),
        (
            {"train": {"p_train": {"wiki": True}}},
            "p_train in section 'train' must give a number as the weight of wiki, not true",
        ),
        (
            {"train": {"p_train": {"wiki": float("nan")}}},
            "p_train in section 'train' must give wiki a finite weight of at least 0, not nan",
        ),
        (
            {"train": {"p_train": {"wiki": -1}}},
            "p_train in section 'train' must give wiki a finite weight of at least 0, not -1",
        ),
        (
            {"train": {"p_train": {"a=b": 1}}},
            "p_train in section 'train' has a source of the name 'a=b', which is none of a dataset",
        ),
        (
            {"train": {"p_train": {"a\nb": 1}}},
            "p_train in section 'train' must be plain UTF-8 text without control characters",
        ),
        (
            {"model": {"V": 300}, "flags": {"vocab_size": 400}},
            "vocab_size is 300 in section 'model' and 400 in section 'flags'",
        ),
        ({"recipe": "cotformer"}, "its settings are those of recipe 'cotformer', not of bytes"),
        ({"recipe": ["bytes"]}, "its settings are those of recipe ['bytes'], not of bytes"),
    ],
)
def test_bad_values_are_told_with_their_section(
    content: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(tmp_path, capsys, content) == [said]


def test_its_files_are_refused_by_the_default_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(tmp_path, {"recipe": "bytes", "model": {"V": 300}})
    (line,) = refused(capsys, "--config", path)
    assert line.endswith("its settings are those of recipe 'bytes', not of cotformer")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--d_ff", "none", "--ckpt_every", "none", "--track", "none"],
        ["--p_train", "wiki=0.50,b=0.5"],
        ["--p_train", "wiki", "--track", "none", "--resume", "none", "--data_seed", "3"],
        ["--config", PRESETS / "bytes_smoke.json", "--model", "adm", "--n_repeat", "3"],
    ],
)
def test_printed_settings_are_read_back(words: list[object], tmp_path: Path) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        parsed(*words, "--print_config")
    again = vars(read(tmp_path, out.getvalue()))
    assert {**again, "config": None} == {**vars(parsed(*words)), "config": None}


# presets


@pytest.mark.parametrize(("name", "steps", "batches"), [("smoke", 1000, 50), ("train", 20000, 100)])
def test_presets_hold_what_its_document_says(name: str, steps: int, batches: int) -> None:
    content = json.loads((PRESETS / f"bytes_{name}.json").read_text())
    train = {
        "seed": 42,
        "B": 32,
        "total_steps": steps,
        "eval_every": 200,
        "eval_steps": batches,
        "ckpt_every": 1000,
        "base_lr": 0.0003,
        "warmup_steps": 200,
        "min_lr": 0.00003,
        "grad_clip": 1.0,
        "p_train": {"wiki": 0.784, "roam": 0.196, "primer": 0.02},
        "log_every": 50,
    }
    assert content == {"model": {}, "train": train}


def test_presets_are_taken(tmp_path: Path) -> None:
    args = parsed("--config", PRESETS / "bytes_smoke.json")
    assert (args.iterations, args.eval_batches) == (1000, 50)
    assert {**vars(parsed("--config", PRESETS / "bytes_train.json")), "config": None} == vars(parsed())
