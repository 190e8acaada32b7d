"""The training library's names from Python: TrainConfig, the metrics of each step, and measures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import config
from errors import UserError
from optim.fit import fit
from optim.library import TrainConfig, bits_per_byte, evaluate_pass_at_k, mean_nats, perplexity
from tests.test_fit import Numbers, Squared, StopAt


def trained(folder: Path | None = None, hooks: Any = (), **changes: Any) -> Any:
    changes = {"max_steps": 12, "batch_size": 4, "warmup_steps": 4, **changes}
    settings = TrainConfig(**changes).settings()
    return fit(Squared(), Numbers(), device="cpu", folder=folder, hooks=hooks, **settings)


# TrainConfig


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adafactor", "sgd"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_every_optimiser_and_schedule_of_the_library_trains(optimizer: str, schedule: str) -> None:
    metrics = trained(optimizer=optimizer, lr_schedule=schedule, learning_rate=1e-2).metrics
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_settings_are_those_of_the_library() -> None:
    assert TrainConfig().flags() == {
        "lr": 3e-4,
        "weight_decay": 0.01,
        "decayed": "all",
        "warmup_steps": 100,
        "iterations": 1000,
        "batch_size": 32,
        "acc_steps": 1,
        "grad_clip": 1.0,
        "eval_freq": 100,
        "log_freq": 10,
        "save_checkpoint_freq": 500,
        "opt": "adamw",
        "beta1": 0.9,
        "beta2": 0.999,
        "scheduler": "cosine",
        "compile": True,
        "seed": 42,
    }


@pytest.mark.parametrize("limit", [0, -1.0, 0.0])
def test_no_limit_of_the_gradient_norm_is_no_clipping(limit: float) -> None:
    assert TrainConfig(max_grad_norm=limit).flags()["grad_clip"] == 0.0


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("optimizer", "rmsprop", "optimizer must be one of adamw, .*not 'rmsprop'"),
        ("optimizer", "muon", "optimizer .*not 'muon'"),
        ("optimizer", None, "optimizer .*not None"),
        ("lr_schedule", "step", "lr_schedule .*not 'step'"),
        ("lr_schedule", "linear_decay", "lr_schedule .*not 'linear_decay'"),
        ("learning_rate", -1e-3, "learning_rate must be at least 0"),
        ("learning_rate", float("nan"), "learning_rate "),
        ("max_steps", 0, "max_steps must be at least 1"),
        ("batch_size", 2.5, "batch_size must be a whole number"),
        ("max_grad_norm", "much", "max_grad_norm must be a number"),
        ("checkpoint_interval", 0, "checkpoint_interval must be at least 1"),
        ("compile_step", "perhaps", "compile_step must be true or false"),
        ("seed", None, "seed "),
    ],
)
def test_values_that_cannot_be_are_named(setting: str, value: Any, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}"):
        TrainConfig(**{setting: value})


def test_a_recipe_takes_the_settings_as_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "library.json").write_text(json.dumps({"learning_rate": 0.002, "lr_schedule": "linear"}))
    TrainConfig.read(tmp_path / "library.json").write(tmp_path / "flags.json")
    for recipe in ([], ["bytes"], ["gpt"]):
        args = config.parse_args([*recipe, "--config", str(tmp_path / "flags.json"), "--dataset", "stdlib"])
        assert (args.lr, args.scheduler, args.iterations, args.acc_steps) == (0.002, "linear_decay", 1000, 1)


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        (
            '{"learning_rat": 1}',
            ValueError,
            r"unknown setting 'learning_rat' \(did you mean learning_rate\?\)",
        ),
        ("[1]", UserError, "does not hold a JSON object"),
        ("{", UserError, "cannot be read"),
        (None, UserError, "no such file"),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, text: str | None, error: type[Exception], line: str
) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(error, match=line):
        TrainConfig.read(tmp_path / "x.json")


# metrics of each step


def test_every_update_has_its_metrics_whatever_is_logged() -> None:
    fitted = trained(log_interval=10)
    assert [row["step"] for row in fitted.metrics] == [*range(1, 13)]
    assert [row["step"] for row in fitted.rows if row["kind"] == "train"] == [10, 12]


def test_an_update_reports_the_rate_that_it_used() -> None:
    """Update n that of step n - 1 of the schedule."""
    rates = [row["learning_rate"] for row in trained(learning_rate=1e-2, lr_schedule="linear").metrics]
    warmup = [1e-7 + (1e-2 - 1e-7) * step / 4 for step in range(4)]
    assert rates == pytest.approx([*warmup, *(1e-2 * (1 - step / 8) for step in range(8))])


def test_the_gradient_norm_is_that_before_clipping() -> None:
    free = trained(max_steps=1).metrics[0]["grad_norm"]
    assert trained(max_steps=1, max_grad_norm=free / 100).metrics[0]["grad_norm"] == free > 0


def test_a_resumed_call_has_the_metrics_of_its_own_steps(tmp_path: Path) -> None:
    whole = trained().metrics
    first = trained(tmp_path, [StopAt("pause", 5)]).metrics
    assert first + trained(tmp_path).metrics == whole


# measures


def test_bits_per_byte_are_the_binary_logarithm_of_the_perplexity_of_bytes() -> None:
    assert bits_per_byte(2.6) == pytest.approx(math.log2(perplexity(2.6)))


@pytest.mark.parametrize("size", [0, -1.0, float("nan"), float("inf")])
def test_tokens_without_bytes_have_no_bits_per_byte(size: float) -> None:
    with pytest.raises(ValueError, match="bytes_per_token must be above 0"):
        bits_per_byte(1.0, size)


@pytest.mark.parametrize(
    ("losses", "tokens"), [([], []), ([1.0], [0]), ([1.0, 2.0], [3]), ([1.0, 2.0], [3, -1])]
)
def test_losses_need_their_numbers_of_tokens(losses: list[float], tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="losses need as many numbers of tokens"):
        mean_nats(losses, tokens)


def test_a_k_below_1_is_refused_for_a_set_too() -> None:
    with pytest.raises(ValueError, match=r"^pass@k needs"):
        evaluate_pass_at_k([[1, 0]], [0])
