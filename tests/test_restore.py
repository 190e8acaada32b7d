"""Which settings a program that opens a checkpoint takes over from the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import config
from config.flags import FLAGS
from optim.restore import resolve


def resolved(trained: dict[str, Any], **given: Any) -> Any:
    return resolve("eval.py", Path("ckpt.pt"), {"itr": 1, "args": vars(config.add_defaults(trained))}, given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_layer", 6),
        ("batch_size", 3),
        ("dtype", "bfloat16"),
        ("vocab_size", 64),
        ("attention_window_length", 8),
        ("iterations", 7),
        ("extend", "restart"),
        ("seed", 9),
        ("eval_seq_prefix", "Twice"),
    ],
)
def test_settings_of_the_training_are_taken_over(name: str, value: Any) -> None:
    assert getattr(resolved({name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [("eval_length_factor", [1.0, 0.5]), ("routing", "threshold"), ("router_threshold", [0.3])],
)
def test_how_tokens_are_routed_is_taken_over(name: str, value: Any) -> None:
    assert getattr(resolved({"model": "adm", "n_repeat": 3, name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compile", True),
        ("deterministic", True),
        ("activation_checkpointing", "block"),
        ("device", "cuda:7"),
        ("distributed_backend", "nccl"),
        ("wandb", True),
        ("stop_file", "/there"),
        ("results_base_folder", "/there"),
        ("use_pretrained", None),
    ],
)
def test_how_the_training_ran_is_not_taken_over(name: str, value: Any) -> None:
    assert getattr(resolved({name: value}), name) == FLAGS[name].default


@pytest.mark.parametrize(("name", "value"), [("eval_sample_size", 1000), ("eval_seq_length", 128)])
def test_how_much_is_read_is_a_matter_of_each_evaluation(name: str, value: int) -> None:
    assert getattr(resolved({name: value}), name) is None


def test_trained_length_stays_where_the_training_was_told_another_one_for_eval() -> None:
    assert resolved({"sequence_length": 256, "eval_seq_length": 128}).sequence_length == 256


def test_dataset_is_found_where_the_training_found_it() -> None:
    args = resolved({"dataset": "mine", "data_dir": "/data/sets"})
    assert (args.dataset, args.data_dir) == ("mine", "/data/sets")


def test_another_dataset_is_not_looked_for_where_the_training_had_its_own() -> None:
    args = resolved({"dataset": "mine", "data_dir": "/data/sets"}, dataset="other")
    assert (args.dataset, args.data_dir) == ("other", None)


def test_what_is_given_now_stands_above_the_training() -> None:
    assert resolved({"batch_size": 3}, batch_size=5).batch_size == 5
