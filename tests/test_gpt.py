"""The recipe of the modern GPT: its flags, what follows from the depth, and what is refused."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

import pytest

import config
from config.identity import differences
from errors import UserError
from models import make_model_from_args
from optim.optimizers import make_optimizer
from optim.schedules import make_scheduler
from optim.selftest import differing
from optim.smoothed_loss import SmoothedLoss
from tests.command_lines import refused
from tests.programs import ROOT, SMALL_DATA, final_state, metrics, python, run, start, wait_for_step

PRESET = ROOT / "recipes" / "presets" / "gpt_cpu.json"
# every flag of the public code, with the value that it has there
PUBLIC = {
    "run": "dummy",
    "device-type": "",
    "fp8-recipe": "tensorwise",
    "depth": "20",
    "aspect-ratio": "64",
    "head-dim": "128",
    "max-seq-len": "2048",
    "window-pattern": "SSSL",
    "num-iterations": "-1",
    "target-flops": "-1",
    "target-param-data-ratio": "10.5",
    "device-batch-size": "32",
    "total-batch-size": "-1",
    "embedding-lr": "0.3",
    "unembedding-lr": "0.004",
    "weight-decay": "0.2",
    "matrix-lr": "0.02",
    "scalar-lr": "0.5",
    "adam-beta1": "0.8",
    "adam-beta2": "0.95",
    "warmup-ratio": "0",
    "warmdown-ratio": "0.5",
    "final-lr-frac": "0",
    "resume-from-step": "-1",
    "eval-every": "250",
    "eval-tokens": str(40 * 524288),
    "core-metric-every": "2000",
    "core-metric-max-per-task": "500",
    "sample-every": "2000",
    "save-every": "-1",
    "model-tag": "d20",
}


def parsed(*words: object) -> Namespace:
    return config.parse_args(["gpt", *map(str, words)])


def test_flags_of_the_public_code_have_its_defaults() -> None:
    words = [word for name, value in PUBLIC.items() for word in (f"--{name}", value)]
    assert parsed(*words) == parsed()


@pytest.mark.parametrize("name", PUBLIC)
def test_its_flags_may_be_written_with_underscores(name: str) -> None:
    assert parsed(f"--{name.replace('-', '_')}={PUBLIC[name]}") == parsed()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--depth", "12"], "n_embd", 768),
        (["--depth", "12"], "n_head", 6),
        (["--depth", "12"], "exp_name", "d12"),
        (["--depth", "12"], "iterations", 2205),
        (["--num-iterations", "7"], "iterations", 7),
        (["--eval-every", "-1"], "eval_freq", 0),
        (["--sample-every", "-1"], "sample_every", 0),
        (["--save-every", "-1"], "save_checkpoint_freq", None),
        (["--save-every", "50"], "save_checkpoint_freq", 50),
        (["--resume-from-step", "50"], "use_pretrained", "ckpt_50.pt"),
        (["--eval-tokens", "131072"], "eval_batches", 2),
        (["--run", "mine"], "wandb", True),
        (["--total-batch-size", "131072"], "acc_steps", 2),
        (["--n_embd", "1024"], "n_head", 8),
    ],
)
def test_what_follows_from_a_flag(words: list[str], name: str, value: object) -> None:
    vocabulary = [] if "--n_embd" in words else ["--vocab_size", "32768"]
    assert getattr(parsed(*words, *vocabulary), name) == value


def test_settings_that_were_filled_in_mean_the_same_again() -> None:
    first = parsed("--depth", 4)
    words = []
    for name, value in vars(first).items():
        if name != "recipe" and value is not None:
            words += [f"--{name}", value]
    assert parsed(*words) == first


def test_printed_settings_follow_another_depth(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parsed("--depth", 4, "--print_config")
    saved = tmp_path / "settings.json"
    saved.write_text(capsys.readouterr().out)
    assert parsed("--config", saved, "--depth", 8) == Namespace(
        **{**vars(parsed("--depth", 8)), "config": str(saved)}
    )


def test_how_a_batch_is_cut_is_no_other_training() -> None:
    assert differences(vars(parsed("--device-batch-size", 16)), vars(parsed())) == []


def test_rates_and_decay_are_scaled_by_batch_and_width() -> None:
    args = parsed("--depth", 4, "--vocab_size", 32768)
    assert (args.rate_scale, args.width_scale) == pytest.approx((0.5**0.5, 3**0.5))
    assert args.weight_decay * args.decay_scale == pytest.approx(1.3499302716954302)


def test_groups_of_the_network_have_the_scaled_rates() -> None:
    args = parsed("--depth", 2, "--head-dim", 32, "--vocab_size", 64, "--device", "cpu")
    optimizer = make_optimizer(make_model_from_args(args), args)
    make_scheduler(optimizer, args)
    groups = {group["param_names"][0]: group for group in optimizer.param_groups}
    matrices, head = groups["transformer.h.0.attn.c_k.weight"], groups["lm_head.weight"]
    assert matrices["lr"] == pytest.approx(0.02 * args.rate_scale)
    assert head["lr"] == pytest.approx(0.004 * args.rate_scale * args.width_scale)
    assert matrices["weight_decay"] == pytest.approx(0.2 * args.decay_scale)


def test_a_batch_that_is_given_in_micro_batches_sets_steps_and_rates() -> None:
    ours = parsed("--depth", 4, "--device-batch-size", 8, "--acc_steps", 2)
    public = parsed("--depth", 4, "--device-batch-size", 8, "--total-batch-size", 2 * 8 * 2048)
    assert vars(ours) == {**vars(public), "total_batch_size": -1}


def test_a_scale_of_ones_own_is_kept() -> None:
    assert parsed("--depth", 4, "--rate_scale", 1).rate_scale == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--target-param-data-ratio", "-1"], "no horizon: give --num-iterations, --target-flops or"),
        (
            ["--target-param-data-ratio", "0"],
            "--target-param-data-ratio 0: batch, rates and weight decay follow",
        ),
        (["--target-param-data-ratio", "1e-12"], "is less than one token for the whole network"),
        (["--target-flops", "1"], "the horizon is shorter than one step of 1048576 tokens"),
        (["--num-iterations", "0"], "--num-iterations (iterations) must be at least 1"),
        (["--total-batch-size", "5000"], "--total-batch-size 5000 is no multiple of --max-seq-len 2048"),
        (["--total-batch-size", "0"], "--total-batch-size 0: give the tokens of one step, or -1"),
        (
            ["--device-batch-size", "24", "--total-batch-size", "262144"],
            "cannot be cut into micro-batches of --device-batch-size 24; these fit: 128, 64, 32,",
        ),
        (
            ["--total-batch-size", "262144", "--acc_steps", "5"],
            "--total-batch-size 262144 is not 327680, the tokens of --acc_steps 5 micro-batches",
        ),
        (["--target-param-data-ratio", "1e300"], "must be at most 1e+06"),
        (["--eval-tokens", "512"], "--eval-tokens 512 is less than one batch, 65536 tokens"),
        (["--device-type", "mps"], "--device-type mps: trainings run on CUDA devices and on CPUs; give cpu"),
        (["--num-iterations", "x"], "--num-iterations (iterations) must be a whole number"),
        (["--head-dim", "7"], "heads must have a whole, even width, not 1281 / 183 = 7"),
        (["--fp8-recipe", "rows"], "--fp8-recipe must be one of tensorwise, rowwise, not 'rows'"),
        (["--depth", "0"], "--depth (n_layer) must be at least 1"),
        (["--depth", "100000000"], "--depth (n_layer) must be at most 1024"),
        (["--window-pattern", "SX", "--target-flops", "1e18"], "--window-pattern 'SX' must be letters"),
        (["--window-pattern", "", "--target-flops", "1e18"], "--window-pattern '' must be letters S and L"),
        (["--head-dim", "0"], "--head-dim must be at least 1"),
        (["--matrix-lr", "x"], "--matrix-lr (lr) must be a number"),
        (["--num-iteration", "5"], "did you mean --num-iterations?"),
    ],
)
def test_bad_input_is_told_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (told,) = refused(capsys, "gpt", *words)
    assert line in told


def test_processes_that_cannot_share_a_batch_are_told_what_can() -> None:
    with pytest.raises(UserError, match=r"not divisible by 8 .*micro-batches of 16, 8, 4, 2, 1$"):
        config.check_world_size(parsed("--depth", 4, "--vocab_size", 32768), 8)


def test_the_preset_is_the_public_example() -> None:
    args = parsed("--config", PRESET)
    assert (args.n_embd, args.iterations, args.acc_steps, args.eval_batches) == (256, 20, 1, 1)


def test_a_step_that_was_skipped_is_not_in_the_smoothed_loss() -> None:
    smoothed = SmoothedLoss(0)
    for loss in (math.nan, 2.0, math.inf, 2.0):
        smoothed.add(loss)
    assert smoothed.value == pytest.approx(2.0)


# a training


def tiny(results: Path, *more: str) -> list[str]:
    """Half a second of training on the small data."""
    words = {
        "depth": 2,
        "aspect-ratio": 16,
        "head-dim": 16,
        "max-seq-len": 48,
        "device-batch-size": 4,
        "total-batch-size": 384,
        "num-iterations": 12,
        "eval-tokens": 384,
        "dataset": "openwebtext2",
        "data_dir": SMALL_DATA,
        "vocab_size": 256,
        "results_base_folder": results,
        "device": "cpu",
    }
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return [*python(), "main.py", "gpt", *flags, *more]


def test_a_training_tells_its_horizon_and_the_smoothed_loss(tmp_path: Path) -> None:
    outcome = run(tiny(tmp_path))
    assert outcome.returncode == 0, outcome.stderr
    told = outcome.stdout + outcome.stderr
    assert "horizon: 12 steps of 384 tokens" in told and "smoothed loss at step 10: " in told
    assert "forecast: 12 of 12 steps left, " in told and "the rate is not known before a job" in told
    assert "note: no samples: --sample_every: no built-in prompt fits" in told


@pytest.mark.slow
def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    more = ["--model-tag", "run", "--save-every", "2", "--log_freq", "1"]
    assert run(tiny(calm, *more)).returncode == 0
    process = start(tiny(killed, *more))
    wait_for_step(killed, 6, process)
    process.kill()
    process.wait()
    outcome = run(tiny(killed, *more))
    assert outcome.returncode == 0 and "resumed from" in outcome.stdout + outcome.stderr
    assert " FLOP/s, the rate of earlier jobs" in outcome.stdout + outcome.stderr
    assert any(name.endswith("/second_moment") for name in final_state(calm))
    assert differing(final_state(calm), final_state(killed)) == []
    assert metrics(calm) == metrics(killed)
