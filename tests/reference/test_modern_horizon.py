"""Sizes, batch, length, rates and decay of a modern GPT by its depth, against the public numbers."""

import pytest

import config
from config.checks import batch_sizes_that_fit
from models.settings import ModelSettings
from recipes.horizon import (
    flops_per_token,
    horizon,
    parameter_counts,
    scaling_parameters,
    width_and_heads,
)
from tests.reference.cases import each, read

FILE = "modern_gpt.json.gz"
NEAR = {"rel": 1e-9}


def flags(case):
    return {**read(FILE)["horizon"]["defaults"], **case["flags"]}


def settings(case):
    given = flags(case)
    width, heads = width_and_heads(case["depth"], given["aspect_ratio"], given["head_dim"])
    args = config.add_defaults(
        {
            "block": "modern",
            "n_layer": case["depth"],
            "n_embd": width,
            "n_head": heads,
            "vocab_size": case["vocab_size"],
            "sequence_length": given["max_seq_len"],
            "window_pattern": given["window_pattern"],
        }
    )
    return ModelSettings.from_args(args)


def planned(case):
    given = flags(case)
    return horizon(
        settings(case),
        given["aspect_ratio"],
        given["head_dim"],
        given["target_param_data_ratio"],
        given["total_batch_size"],
        given["num_iterations"],
        given["target_flops"],
    )


@each(FILE, "horizon", "cases")
def test_sizes(case):
    network = settings(case)
    assert (network.n_embd, network.n_head, network.kv_heads) == (
        case["model_dim"],
        case["n_head"],
        case["n_kv_head"],
    )
    assert parameter_counts(network) == case["params"]
    assert scaling_parameters(network) == case["scaling_params"]
    assert flops_per_token(network) == case["flops_per_token"]


@each(FILE, "horizon", "cases")
def test_length_and_batch(case):
    plan = planned(case)
    assert (plan.target, plan.batch, plan.steps) == (
        case["target_tokens"],
        case["total_batch_size"],
        case["num_iterations"],
    )
    assert plan.base_target == pytest.approx(case["reference_tokens"], **NEAR)
    if plan.steps is not None:
        assert plan.steps * plan.batch == case["total_tokens"]


@each(FILE, "horizon", "cases")
def test_rates_and_decay(case):
    plan, given = planned(case), flags(case)
    tables = plan.rate_scale * plan.width_scale
    unembedding, embedding = (tables * given[name] for name in ("unembedding_lr", "embedding_lr"))
    scalar, matrix = (plan.rate_scale * given[name] for name in ("scalar_lr", "matrix_lr"))
    decay = plan.decay_scale * given["weight_decay"]
    rates = [group["lr"] for group in case["groups"] if group["kind"] == "adamw"]
    assert rates == pytest.approx([unembedding, embedding, embedding, 0.01 * scalar, scalar], **NEAR)
    for group in case["groups"][len(rates) :]:
        assert (group["lr"], group["weight_decay"]) == pytest.approx((matrix, decay), **NEAR)
    assert (plan.rate_scale, decay) == pytest.approx(
        (case["batch_lr_scale"], case["weight_decay_scaled"]), **NEAR
    )


@each(FILE, "horizon", "cases")
def test_micro_batches_of_each_process(case):
    given = flags(case)
    sequences, left = divmod(case["total_batch_size"], given["max_seq_len"])
    assert left == 0
    for processes, right in case["accumulation"].items():
        fitting = batch_sizes_that_fit(sequences, int(processes))
        size = given["device_batch_size"]
        assert (size in fitting) == (right is not None)
        if right is not None:
            assert sequences // (size * int(processes)) == right
