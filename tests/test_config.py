"""The command line: every flag and its default, what is said about bad ones, config files, experiment
names.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from config.flags import FLAGS
from config.identity import differences
from config.old_flags import OLD_FLAGS
from config.schema import Flag
from errors import UserError
from tests.command_lines import config_file, refused

ROOT = Path(config.__file__).resolve().parent.parent

# the published flags and defaults; device and dtype are auto here, so that the same command runs on any
# machine
PUBLISHED = {
    "batch_size": 32,
    "acc_steps": 4,
    "iterations": 25000,
    "seed": 2,
    "device": "auto",
    "opt": "adamw",
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.95,
    "weight_decay": 0.1,
    "grad_clip": 0.0,
    "scheduler": "cos",
    "warmup_percent": 0.05,
    "final_div_factor": 0.05,
    "dataset": "slimpajama",
    "data_dir": None,
    "data_in_ram": False,
    "vocab_size": 50304,
    "add_additional_space": False,
    "model": "base",
    "n_layer": 24,
    "n_embd": 768,
    "n_head": 12,
    "sequence_length": 512,
    "dtype": "auto",
    "bias": False,
    "dropout": 0.0,
    "compile": False,
    "rmsnorm_eps": 1e-5,
    "multiple_of": 256,
    "n_repeat": 2,
    "n_layer_begin": 0,
    "n_layer_end": 0,
    "min_repeat": 1,
    "depth_random_method": "uniform",
    "depth_embedding": None,
    "disable_ln_mid": False,
    "mod_capacity_factor": 0.6,
    "halt_threshold": 0.999,
    "depth_predictor_loss_coef": None,
    "eval_length_factor": None,
    "training_length_factor": None,
    "positional_encoder": "rotary",
    "lm_cache": "none",
    "attention_window_length": None,
    "mem_cache_size": None,
    "cache_topk": 1,
    "cache_selection_method": "per_token_and_head",
    "cache_indexing_scheme": "by_total",
    "track_cache_attention": False,
    "allow_cache_during_training": False,
    "eval_freq": 200,
    "eval_seq_prefix": "Once upon a time",
    "eval_seq_length": None,
    "eval_sample_size": None,
    "wandb": False,
    "wandb_project": "my-project",
    "wandb_entity": None,
    "results_base_folder": "./exps",
    "save_checkpoint_freq": None,
    "remove_intermediary_checkpoints_at_end": False,
    "use_pretrained": "auto",
    "exp_name": None,
    "run_prefix": None,
    "distributed_backend": None,
    "config_format": "base",
}
CHOICES = {
    "opt": ["adamw", "sgd", "adafactor"],
    "scheduler": ["cos", "linear", "none"],
    "depth_random_method": [
        "uniform",
        "uniform_random_range",
        "more_chance_for_zero_too",
        "exponential_decay",
        "pick_mid_and_recurse",
    ],
    "depth_embedding": ["linear_learned", "learned"],
    "positional_encoder": ["rotary", "none"],
    "lm_cache": ["none"],
    "distributed_backend": ["nccl", "gloo"],
    "config_format": ["base"],
}


# flags and values


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flag_has_its_default(name):
    value = getattr(config.parse_args([]), name)
    assert (type(value), value) == (type(PUBLISHED[name]), PUBLISHED[name])


@pytest.mark.parametrize(
    ("name", "choice"), [(name, choice) for name, choices in CHOICES.items() for choice in choices]
)
def test_published_choice_is_accepted(name, choice):
    assert getattr(config.parse_args([f"--{name}", choice]), name) == choice


def test_data_seed_follows_seed():
    assert config.parse_args(["--seed", "17"]).data_seed == 17


def test_data_seed_may_differ_from_seed():
    assert config.parse_args(["--seed", "17", "--data_seed", "0"]).data_seed == 0


@pytest.mark.parametrize(
    "name", [name for name, flag in FLAGS.items() if flag.default is None or name == "use_pretrained"]
)
@pytest.mark.parametrize("word", ["None", "none"])
def test_optional_flag_may_be_none(name, word):
    expected = 2 if name == "data_seed" else None
    assert getattr(config.parse_args([f"--{name}", word]), name) == expected


@pytest.mark.parametrize("word", ["torch.bfloat16", "bfloat16"])
def test_dtype_may_be_written_as_torch_writes_it(word):
    assert config.parse_args(["--dtype", word]).dtype == "bfloat16"


SWITCHES = [name for name, flag in FLAGS.items() if flag.default is False]


@pytest.mark.parametrize("name", SWITCHES)
def test_switch_without_a_value_is_on(name):
    assert getattr(config.parse_args([f"--{name}"]), name) is True


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("false", False),
        ("False", False),
        ("no", False),
        ("0", False),
        ("off", False),
        ("true", True),
        ("True", True),
        ("yes", True),
        ("1", True),
        ("on", True),
    ],
)
def test_bias_takes_a_truth_value(word, value):
    assert config.parse_args(["--bias", word]).bias is value


def test_switch_with_another_value_is_refused(capsys):
    assert refused(capsys, "--bias", "maybe") == ["main.py: error: --bias must be true or false, not 'maybe'"]


def test_length_factors_are_a_list_of_numbers():
    assert config.parse_args(
        ["--model", "adm", "--n_repeat", "4", "--eval_length_factor", "1", "0.5", "0"]
    ).eval_length_factor == [1.0, 0.5, 0.0]


def test_short_model_names_become_long_ones():
    assert config.parse_args(["--model", "lncot"]).model == "cotformer_full_depth_lnmid_depthemb"


def test_flags_may_be_written_with_an_equals_sign():
    assert config.parse_args(["--n_layer=6"]).n_layer == 6


def test_last_of_two_values_holds():
    assert config.parse_args(["--n_layer", "6", "--n_layer", "8"]).n_layer == 8


@pytest.mark.parametrize("name", [*PUBLISHED, "config", "extend", "max_runtime_minutes"])
def test_help_names_every_flag(capsys, name):
    with pytest.raises(SystemExit):
        config.parse_args(["--help"])
    assert f"--{name} " in capsys.readouterr().out


def test_help_exits_with_0(capsys):
    with pytest.raises(SystemExit) as stopped:
        config.parse_args(["--help"])
    assert stopped.value.code == 0


def test_help_says_where_the_rate_ends(capsys):
    with pytest.raises(SystemExit):
        config.parse_args(["--help"])
    assert "lr/100/final_div_factor: 20% of the peak at 0.05" in " ".join(capsys.readouterr().out.split())


def test_flags_without_effect_stand_in_one_line_of_help(capsys):
    with pytest.raises(SystemExit):
        config.parse_args(["--help"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "--rmsnorm_eps" in line]
    assert all(f"--{flag.name} " in line for flag in OLD_FLAGS)


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_has_help(name):
    assert len(FLAGS[name].help) > 5


# what is refused


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("n_layers", "n_layer"),
        ("batchsize", "batch_size"),
        ("warmup_pct", "warmup_percent"),
        ("sequence_len", "sequence_length"),
        ("n-head", "n_head"),
    ],
)
def test_unknown_flag_names_the_nearest(capsys, wrong, right):
    assert refused(capsys, f"--{wrong}", "4") == [
        f"main.py: error: unknown flag --{wrong} (did you mean --{right}?)"
    ]


def test_flag_like_no_other_names_none(capsys):
    assert refused(capsys, "--zzzzqqqq=4") == ["main.py: error: unknown flag --zzzzqqqq"]


def test_abbreviated_flag_is_unknown(capsys):
    assert refused(capsys, "--n_lay", "4")[0].startswith("main.py: error: unknown flag --n_lay ")


def test_stray_word_is_refused(capsys):
    assert refused(capsys, "--n_layer", "6", "train") == ["main.py: error: unexpected argument 'train'"]


def test_unknown_choice_names_the_nearest(capsys):
    assert refused(capsys, "--model", "cotformer_ful_depth")[0].endswith(
        "not 'cotformer_ful_depth' (did you mean cotformer_full_depth?)"
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--lr", "fast"], "--lr must be a number, not 'fast'"),
        (["--n_layer", "2.5"], "--n_layer must be a whole number, not '2.5'"),
        (["--n_layer", ""], "--n_layer must be a whole number, not ''"),
        (["--n_layer", "0"], "--n_layer must be at least 1, not 0"),
        (["--batch_size", "-4"], "--batch_size must be at least 1, not -4"),
        (["--dropout", "1.5"], "--dropout must be at most 1, not 1.5"),
        (["--lr", "nan"], "--lr must be finite, not 'nan'"),
        (["--lr", "1e999"], "--lr must be finite, not '1e999'"),
        (["--seed", "9" * 30], "--seed is too large: " + "9" * 30),
        (["--seed", "9" * 400], "--seed is too large: " + "9" * 400),
        (["--n_layer", "None"], "--n_layer must be a whole number, not 'None'"),
        (["--exp_name", "a\nb"], "--exp_name must be plain UTF-8 text without control characters"),
        (["--lr"], "--lr needs a value"),
        (["--n_embd", "100"], "--n_embd 100 is not divisible by --n_head 12"),
        (["--n_embd", "36"], "rotary positions need an even head width, but --n_embd 36 / --n_head 12 = 3"),
        (
            ["--model", "cot", "--n_layer", "2", "--n_layer_begin", "1", "--n_layer_end", "1"],
            "--n_layer_begin 1 + --n_layer_end 1 leave no layer of --n_layer 2 between them",
        ),
        (["--model", "cot", "--min_repeat", "3"], "--min_repeat 3 is more than --n_repeat 2"),
        (
            ["--model", "adm", "--n_repeat", "4", "--eval_length_factor", "0.5"],
            "--eval_length_factor needs n_repeat - 1 = 3 values, not 1",
        ),
        (
            ["--model", "adm", "--n_repeat", "3", "--training_length_factor", "0.2", "0.5"],
            "--training_length_factor must not increase: a token that has stopped cannot go on again",
        ),
        (
            ["--eval_length_factor", "none", "none"],
            "--eval_length_factor takes None alone, without other values",
        ),
        (["--dropout", "1"], "--dropout must be below 1"),
        (
            ["--scheduler", "wsd", "--warmup_percent", "0.7", "--decay_percent", "0.6"],
            "--warmup_percent 0.7 + --decay_percent 0.6 are more than the whole run",
        ),
        (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
        (["--exp_name", "../other"], "--exp_name '../other' must be a plain folder name"),
        (["--exp_name", "/other"], "--exp_name '/other' must be a plain folder name"),
        (["--exp_name", ""], "--exp_name '' must be a plain folder name"),
        (["--run_prefix", "a/../../b"], "--run_prefix 'a/../../b' must be a plain folder name"),
        (["--exp_name", "x" * 300], "--exp_name must stay under 200 bytes"),
        (["--dataset", ".."], "--dataset '..' is not a folder name"),
        (["--dataset", ""], "--dataset '' is not a folder name"),
    ],
)
def test_bad_value_is_refused_in_one_line(capsys, argv, said):
    assert refused(capsys, *argv) == [f"main.py: error: {said}"]


@pytest.mark.parametrize("name", ["exp_name", "run_prefix"])
def test_name_that_is_no_text_is_refused(capsys, name):
    assert len(refused(capsys, f"--{name}", "\udcff")) == 1


def test_bad_values_and_unknown_flags_are_reported_together(capsys):
    said = refused(capsys, "--lr", "fast", "stray", "--n_layers", "4", "--opt", "lamb", "--bias", "maybe")
    assert len(said) == 5


def test_impossible_combinations_are_reported_together(capsys):
    assert (
        len(refused(capsys, "--n_embd", "100", "--dropout", "1", "--device", "tpu", "--exp_name", "..")) == 4
    )


def test_bad_values_and_impossible_combinations_are_reported_together(capsys):
    assert len(refused(capsys, "--lr", "fast", "--n_embd", "100")) == 2


def test_faulty_value_of_a_config_file_is_reported_once(tmp_path, capsys):
    """Its default stands in for it, which is not to be compared with anything."""
    path = config_file(tmp_path, {"n_embd": "wide", "n_head": 5})
    assert refused(capsys, "--config", path) == [
        f"main.py: error: --config {path}: n_embd must be a whole number, not 'wide'"
    ]


def test_missing_value_hides_no_other_problem(capsys):
    assert len(refused(capsys, "--n_layers", "4", "--lr")) == 2


@given(
    st.lists(
        st.one_of(
            st.sampled_from([f"--{name}" for name in FLAGS]),
            st.text(max_size=8),
            st.integers().map(str),
            st.floats().map(str),
        ),
        max_size=6,
    )
)
def test_any_command_line_is_either_parsed_or_refused(argv):
    try:
        config.parse_args(argv)
    except SystemExit as stopped:
        assert stopped.code in (0, 2)


@pytest.mark.parametrize("processes", [3, 8])
def test_uneven_share_of_micro_batches_is_refused_with_the_numbers(processes):
    with pytest.raises(UserError, match=f"--acc_steps 4 is not divisible by {processes} processes"):
        config.check_world_size(config.parse_args([]), processes)


def test_setting_without_effect_is_named():
    assert config.unused_settings(config.parse_args(["--multiple_of", "128"])) == [
        "--multiple_of has no effect: the flag is accepted for old command lines"
    ]


@pytest.mark.parametrize("name", [flag.name for flag in OLD_FLAGS])
def test_every_old_flag_is_called_without_effect(name):
    args = config.parse_args([])
    vars(args)[name] = "other"
    assert f"--{name} has no effect: the flag is accepted for old command lines" in config.unused_settings(
        args
    )


def test_unused_flags_of_the_authors_are_accepted_with_a_line():
    words = "--pos_jump_freq 3 --pos_jump_schedule x --optimization_process base --total_sequence_length 512"
    assert (
        len(
            [
                line
                for line in config.unused_settings(config.parse_args(words.split()))
                if "has no effect" in line
            ]
        )
        == 4
    )


def test_hyphens_in_an_evaluations_own_flag_are_underscores():
    own = {"own": (Flag("output_dir", str, None, ""),)}
    for words in (["--output-dir", "a-b"], ["--output-dir=a-b"], ["--output_dir", "a-b"]):
        assert config.parse(words, prog="eval.py", description="", extra=own) == ({"output_dir": "a-b"}, [])


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["--method", "cf"], "--cascade raw position token"),
        (["--config-loading", "argparse"], "the settings come from the checkpoint"),
        (["--weights-40k", "a.npy"], "python plot_fig5.py"),
        (["--weights-60k=a.npy"], "python plot_fig5.py"),
    ],
)
def test_old_commands_are_answered_with_the_new_form(capsys, words, form):
    with pytest.raises(SystemExit):
        config.parse_args(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert form in line


def test_the_new_form_names_a_flag_of_the_command_alone():
    own = {"own": (Flag("output_dir", str, None, ""),)}
    said = config.parse(["--output", "f.png"], prog="plot.py", description="", groups=own)[1]
    assert said == ["unknown flag --output; --output_dir FOLDER takes its place"]


def test_min_repeat_of_the_published_commands_is_not_called_without_effect():
    assert (
        config.unused_settings(config.parse_args(["--model", "cot", "--n_repeat", "5", "--min_repeat", "5"]))
        == []
    )


def test_a_step_to_keep_beyond_the_end_is_told():
    words = ["--iterations", "60", "--keep_steps", "50", "60", "70"]
    assert config.unused_settings(config.parse_args(words)) == [
        "--keep_steps 70 is beyond --iterations 60: there will be no checkpoint of that step"
    ]


@pytest.mark.parametrize("value", ["0", "-5", "2.5", "half"])
def test_a_step_to_keep_is_a_positive_whole_number(value, capsys):
    with pytest.raises(SystemExit) as ended:
        config.parse_args(["--keep_steps", "10", value])
    assert ended.value.code == 2 and "--keep_steps must be" in capsys.readouterr().err


def test_steps_to_keep_make_no_other_training():
    plain, keeping = config.parse_args([]), config.parse_args(["--keep_steps", "10"])
    assert (
        config.experiment_name(plain) == config.experiment_name(keeping)
        and differences(vars(keeping), vars(plain)) == []
    )


def test_default_settings_are_not_called_without_effect():
    assert config.unused_settings(config.parse_args([])) == []


# speed of --help


def run_help(*words, options=()):
    command = [sys.executable, *options, "main.py", *words, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["cotformer"]])
def test_help_answers_within_a_second(words):
    seconds = []
    for _ in range(3):
        begin = time.monotonic()
        run_help(*words)
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 1


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["cotformer"]])
def test_help_imports_nothing_heavy(words):
    lines = run_help(*words, options=("-X", "importtime")).stderr.splitlines()
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in lines}
    assert "argparse" in imported
    assert not imported & {"torch", "numpy", "wandb", "tiktoken"}
