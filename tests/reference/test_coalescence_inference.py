"""Times from a trained network: decoding, posterior, and the correction by a mutation rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.coalescence.decoding import Cache, prefill, step
from models.coalescence.settings import CHANNELS, SCALES
from optim.coalescence.decoding import decode, uniforms_of
from optim.coalescence.inference import ln_times
from optim.coalescence.posterior import (
    deterministic_correction,
    differences,
    mean_time,
    mse_of_pairs,
    pearson_of_pairs,
    posterior,
    sampled_correction,
)
from report import coalescence
from tests.reference.cases import each, read
from tests.reference.coalescence_model import FILE, inputs, network_of, tokens

Case = dict[str, Any]
SMALL = "sampled_small_u_row_0"


def part(*keys: str) -> Callable[[Any], Any]:
    """Marks a reference test of a part of the file, its argument `found`."""
    found, name = read(FILE), keys[-1]
    for key in keys:
        found = (found or {}).get(key)
    reason = f"no {' in '.join(reversed(keys))} in {FILE}"
    skipped = pytest.mark.skipif(found is None, reason=reason)
    parameter = pytest.param(found, marks=skipped, id=name)
    return lambda test: pytest.mark.reference(pytest.mark.parametrize("found", [parameter])(test))


def inputs_of(case: Case) -> Tensor:
    shape = (case["rows"], CHANNELS, SCALES, case["n_windows"], case["config"]["num_samples"])
    return inputs(case["x_q"], *shape)


def uniforms(case: Case) -> Tensor:
    return uniforms_of(range(case["rows"]), case["n_windows"], case["sampled"]["base_seed"])


def decoded(case: Case, of_rows: Tensor, top_k: int) -> list[list[int]]:
    """One replicate of each row, with the token that begins it."""
    network = network_of(case).eval()
    found = decode(network, inputs_of(case), of_rows.unsqueeze(1), top_k).squeeze(1)
    return [[1, *row] for row in found.tolist()]


@each(FILE, "inference", "cases")
def test_each_row_draws_by_a_generator_of_its_own(case):
    expected = torch.tensor(case["sampled"]["uniforms"])
    assert torch.allclose(uniforms(case), expected, rtol=0, atol=1e-7)


@each(FILE, "inference", "cases")
def test_sampled_tokens(case):
    sampled = case["sampled"]
    assert decoded(case, uniforms(case), sampled["top_k"]) == sampled["tokens_right"]


@each(FILE, "inference", "cases")
def test_tokens_that_stand_for_no_time_are_not_drawn(case):
    of_rows = uniforms(case)
    of_rows[0] = case[SMALL]["uniforms_row_0"]
    assert decoded(case, of_rows, case["sampled"]["top_k"]) == case[SMALL]["tokens_right"]


@each(FILE, "inference", "cases")
def test_the_likeliest_tokens_are_those_of_a_top_k_of_one(case):
    assert decoded(case, uniforms(case), 1) == case["greedy"]["tokens"]


@each(FILE, "inference", "cases")
def test_a_token_stands_for_the_lower_edge_of_its_bin(case):
    first = np.array(case["greedy"]["tokens"][0][1:])
    made = ln_times(first, case["config"]["output_dim"])
    assert made == pytest.approx(case["ln_times_greedy_first_row"], abs=1e-9)


@each(FILE, "inference", "cases")
def test_cached_logits_are_those_of_the_whole_sequence(case):
    network, x = network_of(case).eval(), inputs_of(case)
    sequence = tokens(case["x_q"], case["rows"], case["n_windows"], case["config"]["output_dim"])
    cache = Cache(1)
    with torch.no_grad():
        whole = network.logits(network.run(x, sequence[:, :-1]).states)
        prefill(network, x, cache)
        for position in range(case["n_windows"]):
            of_step = step(network, sequence[:, position], position, cache)
            assert (of_step - whole[:, position]).abs().max() < 2e-5


@part("inference", "posterior")
def test_mean_and_interval_of_the_replicates(found):
    made = posterior(np.array(found["ln_times"]))
    for name in ("mean", "sd", "low", "high"):
        assert getattr(made, name) == pytest.approx(np.array(found[name]), abs=1e-9)


@part("inference", "posterior")
def test_logarithm_of_the_mean_time(found):
    made = np.log(mean_time(np.array(found["ln_times"])))
    assert made == pytest.approx(np.array(found["ln_of_mean_time"]), abs=1e-9)


@part("inference", "posterior")
def test_accuracy_of_each_pair(found):
    mean, truth = posterior(np.array(found["ln_times"])).mean, np.array(found["truth"])
    assert mse_of_pairs(mean, truth) == pytest.approx(found["mse_per_pair"], abs=1e-8)
    assert pearson_of_pairs(mean, truth) == pytest.approx(found["pearson_per_pair"], abs=1e-8)


@part("inference", "correction")
def test_differences_of_pairs(found):
    haplotypes = np.array(found["genotypes"]).T
    assert differences(haplotypes, np.array(found["pairs"])).tolist() == found["counts"]


def uncorrected() -> Any:
    return np.array(read(FILE)["inference"]["posterior"]["ln_times"])


def available(found: Any, case: str) -> Any:
    missing = np.array(found["missing_fraction"])
    share = 1 - missing if case == "with_missing" else np.ones_like(missing)
    return share * found["window"]


@pytest.mark.parametrize("case", ["plain", "with_missing"])
@part("inference", "correction")
def test_times_follow_a_mutation_rate(found, case):
    generator = np.random.default_rng(found[case]["gamma_seed"])
    made = sampled_correction(
        uncorrected(), np.array(found["counts"]), found["mutation_rate"], available(found, case), generator
    )
    assert made == pytest.approx(np.array(found[case]["corrected"]), abs=1e-6)
    factors = np.exp(made - uncorrected())[..., 0]
    assert factors == pytest.approx(np.array(found[case]["factors"]), rel=1e-6)


@part("inference", "correction")
def test_times_follow_a_mutation_rate_without_drawing(found):
    made = deterministic_correction(
        uncorrected(), np.array(found["counts"]), found["mutation_rate"], available(found, "plain")
    )
    assert made == pytest.approx(np.array(found["deterministic"]), abs=1e-6)


@part("reported_accuracy")
def test_reported_values_of_the_page(found):
    assert [list(row[1:]) for row in coalescence.REPORTED] == found["docs_check"]["rows"]
    assert [list(row) for row in coalescence.PAPER] == found["paper"]["rows"]
    assert list(coalescence.RELEASED) == found["checkpoints"]


@part("released_runs", "steps_per_epoch")
def test_released_steps_of_the_page_are_whole_epochs(found):
    for name in coalescence.RELEASED:
        label, _, rest = name.partition("_epoch=")
        last_epoch, _, steps = rest.partition("-step=")
        assert label not in found or int(steps) == found[label] * (int(last_epoch) + 1)
