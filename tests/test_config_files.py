"""--config FILE.json, flat and in sections, and --print_config, which writes one."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import config
from config.flags import FLAGS
from config.recipe import recipes
from config.schema import Flag, boolean
from tests.command_lines import config_file, refused
from tests.programs import ROOT


def test_config_file_overlays_the_defaults(tmp_path):
    assert config.parse_args(["--config", str(config_file(tmp_path, {"n_layer": 6}))]).n_layer == 6


def test_a_byte_order_mark_is_no_part_of_a_config_file(tmp_path):
    (tmp_path / "settings.json").write_text('{"n_layer": 6}', encoding="utf-8-sig")
    assert config.parse_args(["--config", str(tmp_path / "settings.json")]).n_layer == 6


@pytest.mark.parametrize("command_line_first", [True, False])
def test_command_line_overlays_the_config_file(tmp_path, command_line_first):
    flag, file = ["--n_layer", "8"], ["--config", str(config_file(tmp_path, {"n_layer": 6}))]
    assert config.parse_args([*flag, *file] if command_line_first else [*file, *flag]).n_layer == 8


def test_command_line_may_take_a_switch_of_the_config_file_back(tmp_path):
    assert (
        config.parse_args(["--config", str(config_file(tmp_path, {"bias": True})), "--bias", "false"]).bias
        is False
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", True),
        ("bias", False),
        ("lr", 0.5),
        ("lr", 1),
        ("exp_name", "x"),
        ("data_dir", None),
        ("eval_length_factor", [0.5]),
        ("eval_length_factor", None),
        ("use_pretrained", None),
        ("n_layer", 3),
    ],
)
def test_config_file_takes_json_values(tmp_path, name, value):
    assert getattr(config.parse_args(["--config", str(config_file(tmp_path, {name: value}))]), name) == value


def test_config_file_may_name_the_model_in_short(tmp_path):
    assert (
        config.parse_args(["--config", str(config_file(tmp_path, {"model": "cot"}))]).model
        == "cotformer_full_depth"
    )


def test_whole_namespace_may_be_read_back(tmp_path):
    args = config.parse_args(
        [
            "--model",
            "adm",
            "--n_repeat",
            "3",
            "--training_length_factor",
            "0.5",
            "0.25",
            "--bias",
            "--lr",
            "3e-4",
        ]
    )
    content = {name: value for name, value in vars(args).items() if name != "config"}
    read = config.parse_args(["--config", str(config_file(tmp_path, content))])
    assert {**vars(read), "config": None} == vars(args)


def test_unknown_key_of_a_config_file_names_the_nearest(tmp_path, capsys):
    path = config_file(tmp_path, {"n_layers": 6})
    assert refused(capsys, "--config", path) == [
        f"main.py: error: --config {path}: unknown key 'n_layers' (did you mean n_layer?)"
    ]


@pytest.mark.parametrize("content", ["", "{", '{"n_layer": }', "[" * 100_000, "n_layer: 6", "\udcff"])
def test_config_file_that_is_no_json_is_refused(tmp_path, capsys, content):
    path = tmp_path / "settings.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    (said,) = refused(capsys, "--config", path)
    assert said.startswith(f"main.py: error: --config {path}: not valid JSON (")


@pytest.mark.parametrize("content", ["[]", "5", "null", '"n_layer"'])
def test_config_file_that_is_no_object_is_refused(tmp_path, capsys, content):
    path = config_file(tmp_path, content)
    assert refused(capsys, "--config", path) == [
        f"main.py: error: --config {path}: must hold one JSON object of flags and values"
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"n_layer": "six"}, "n_layer must be a whole number, not 'six'"),
        ({"n_layer": None}, "n_layer needs a value"),
        ({"n_layer": [6]}, "n_layer takes one value, not [6]"),
        ({"lr": {}}, "lr takes one value, not {}"),
        ({"lr": float("nan")}, "lr must be finite, not 'nan'"),
        ({"n_layer": True}, "n_layer must be a whole number, not 'True'"),
        ({"n_layer": 10**400}, "n_layer is too large: " + str(10**400)),
    ],
)
def test_bad_value_in_a_config_file_is_refused(tmp_path, capsys, content, said):
    path = config_file(tmp_path, content)
    assert refused(capsys, "--config", path) == [f"main.py: error: --config {path}: {said}"]


def test_missing_config_file_is_refused(tmp_path, capsys):
    path = tmp_path / "nothing.json"
    assert refused(capsys, "--config", path) == [
        f"main.py: error: --config {path}: No such file or directory"
    ]


def test_config_file_may_not_be_a_folder(tmp_path, capsys):
    assert refused(capsys, "--config", tmp_path) == [f"main.py: error: --config {tmp_path}: Is a directory"]


def test_problems_of_a_config_file_and_of_the_command_line_are_reported_together(tmp_path, capsys):
    assert (
        len(refused(capsys, "--config", config_file(tmp_path, {"n_layers": 6, "lr": "x"}), "--seed", "-1"))
        == 3
    )


# sections


def parsed(tmp_path, content):
    return config.parse_args(["--config", str(config_file(tmp_path, content))])


def test_sections_are_read_as_one(tmp_path):
    content = {"model": {"n_layer": 6, "model": "cot"}, "train": {"lr": 0.5}, "seed": 7}
    args = parsed(tmp_path, content)
    assert (args.n_layer, args.model, args.lr, args.seed) == (6, "cotformer_full_depth", 0.5, 7)


@given(
    st.dictionaries(st.sampled_from(["n_layer", "seed", "iterations", "eval_freq"]), st.integers(1, 99)),
    st.lists(st.text(max_size=5).filter(lambda name: name != "recipe"), min_size=4, max_size=4),
)
def test_it_does_not_matter_which_section_a_setting_is_in(values, names):
    content: dict[str, Any] = {}
    for section, (name, value) in zip(names, values.items(), strict=False):
        content.setdefault(section, {})[name] = value
    with tempfile.TemporaryDirectory() as folder:
        assert parsed(Path(folder), content) == parsed(Path(folder), values)


def test_a_section_may_have_the_name_of_a_flag(tmp_path):
    args = parsed(tmp_path, {"dataset": {"dataset": "stdlib", "vocab_size": 300}})
    assert (args.dataset, args.vocab_size) == ("stdlib", 300)


def test_command_line_overlays_a_section(tmp_path):
    path = config_file(tmp_path, {"model": {"n_layer": 6}})
    assert config.parse_args(["--config", str(path), "--n_layer", "8"]).n_layer == 8


def test_unknown_keys_of_all_sections_are_listed_together(tmp_path, capsys):
    content = {"model": {"n_layers": 6, "zzzz": 1}, "train": {"learning": 1, "n_layer": 4}, "seeds": 3}
    path = config_file(tmp_path, content)
    prefix = f"main.py: error: --config {path}: unknown key"
    assert refused(capsys, "--config", path) == [
        f"{prefix} 'n_layers' in section 'model' (did you mean n_layer?)",
        f"{prefix} 'zzzz' in section 'model'",
        f"{prefix} 'learning' in section 'train'" + config.nearest("learning", FLAGS),
        f"{prefix} 'seeds' (did you mean seed?)",
    ]


def test_bad_value_names_its_section(tmp_path, capsys):
    path = config_file(tmp_path, {"model": {"n_layer": "six"}})
    assert refused(capsys, "--config", path) == [
        f"main.py: error: --config {path}: n_layer in section 'model' must be a whole number, not 'six'"
    ]


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (
            {"model": {"n_layer": 4}, "train": {"n_layer": 6}},
            "4 in section 'model' and 6 in section 'train'",
        ),
        ({"n_layer": 4, "model": {"n_layer": 6}}, "4 and 6 in section 'model'"),
    ],
)
def test_two_values_of_one_setting_are_refused(tmp_path, capsys, content, places):
    path = config_file(tmp_path, content)
    assert refused(capsys, "--config", path) == [f"main.py: error: --config {path}: n_layer is {places}"]


@pytest.mark.parametrize("content", ['{"lr": 1, "lr": 2}', '{"a": {"lr": 1}, "a": {"seed": 2}}'])
def test_key_that_stands_twice_in_one_object_is_refused(tmp_path, capsys, content):
    (line,) = refused(capsys, "--config", config_file(tmp_path, content))
    assert line.endswith("stands twice in one object)")


def test_the_same_value_may_stand_in_two_sections(tmp_path):
    assert parsed(tmp_path, {"model": {"dropout": 0}, "train": {"dropout": 0.0}}).dropout == 0


def test_section_within_a_section_is_refused(tmp_path, capsys):
    path = config_file(tmp_path, {"model": {"inner": {"n_layer": 6}}})
    (line,) = refused(capsys, "--config", path)
    assert "unknown key 'inner' in section 'model'" in line


def test_settings_of_another_recipe_are_refused(tmp_path, capsys):
    path = config_file(tmp_path, {"recipe": "other", "n_layer": 6})
    assert refused(capsys, "--config", path) == [
        f"main.py: error: --config {path}: its settings are those of recipe 'other', not of cotformer"
    ]


# --print_config


def printed(*words: str) -> str:
    """What --print_config prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        config.parse_args([*words, "--print_config"])
    assert ended.value.code == 0
    return out.getvalue()


TEXT = st.text("abcXYZ089._-", min_size=1, max_size=6).filter(lambda text: text.lower() != "none")


def one_value(flag: Flag) -> st.SearchStrategy[str]:
    """Words that a flag takes."""
    if flag.choices:
        return st.sampled_from(flag.choices)
    if flag.type is boolean:
        return st.sampled_from(["true", "false"])
    low = 0 if flag.low is None else flag.low
    if flag.type is int:
        return st.integers(int(low), 2**40).map(str)
    if flag.type is float:
        return st.floats(low, flag.high or 1e6, allow_nan=False).map(repr)
    return TEXT


@st.composite
def flag_words(draw: st.DrawFn) -> list[str]:
    recipe = recipes()[draw(st.sampled_from(["cotformer", "bytes"]))]
    words = [recipe.name]
    for name in draw(st.lists(st.sampled_from(sorted(set(FLAGS) - {"config"})), max_size=8, unique=True)):
        flag = recipe.flags[name]
        count = draw(st.integers(1, 3)) if flag.many else 1
        values = [draw(one_value(flag)) for _ in range(count)]
        if flag.takes_none and draw(st.booleans()):
            values = ["none"]
        words += [f"--{name}", *(f"{value}" for value in values)]
    return words


@settings(max_examples=200)
@given(flag_words())
def test_printed_settings_are_read_back_as_the_same_run(words):
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            args = config.parse_args(words)
    except SystemExit:  # flags that do not go together
        return
    with tempfile.TemporaryDirectory() as folder:
        path = config_file(Path(folder), printed(*words))
        again = config.parse_args([words[0], "--config", str(path)])
    again.config = None
    assert again == args
    assert config.experiment_folder(again) == config.experiment_folder(args)


def test_printed_settings_leave_the_order_of_samples_to_another_seed(tmp_path):
    path = config_file(tmp_path, printed())
    assert config.parse_args(["--config", str(path), "--seed", "7"]).data_seed == 7


@pytest.mark.parametrize("name", sorted(set(FLAGS) - {"config", "data_seed"}))
def test_every_setting_is_printed(name):
    assert json.loads(printed())[name] == getattr(config.parse_args([]), name)


def test_bad_flags_are_refused_instead_of_printed(capsys):
    assert refused(capsys, "--print_config", "--n_layer", "x") == [
        "main.py: error: --n_layer must be a whole number, not 'x'"
    ]
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_printing_creates_nothing(tmp_path):
    words = [sys.executable, str(ROOT / "main.py"), "--print_config", "--dataset", "stdlib"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])
    assert json.loads(done.stdout)["dataset"] == "stdlib"
