"""Multiply-accumulates in closed form against what the model itself does; tests/reference/ has the authors'
counts.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.macs import active_tokens, count_macs, training_flops_per_token
from models.settings import ModelSettings
from models.variants import ALIASES
from tests.helpers import tiny_args, tiny_model, tokens


def test_macs_are_a_whole_number():
    assert type(count_macs(tiny_args("adm"), 16, [0.7, 0.3])) is int


def test_no_factors_mean_that_all_tokens_go_on():
    assert count_macs(tiny_args("adm"), 16) == count_macs(tiny_args("adm"), 16, [1.0, 1.0])


def test_fewer_tokens_that_go_on_cost_less():
    macs = [
        count_macs(tiny_args("adm"), 256, factors)
        for factors in ([1.0, 1.0], [0.9, 0.6], [0.9, 0.3], [0.5, 0.3], [0.0, 0.0])
    ]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == 5


@pytest.mark.parametrize("model", [ALIASES["adm"], ALIASES["but_mod"]])
@pytest.mark.parametrize("factors", [[1.0, 1.0, 1.0], [0.9, 0.6, 0.3], [0.46, 0.2, 0.18], [0.5, 0.5, 0.0]])
def test_counted_tokens_are_those_that_the_model_runs(model, factors):
    flags = ["--n_repeat", "4", "--sequence_length", "256"]
    with torch.no_grad():
        depth = tiny_model(model, *flags, eval_length_factor=factors)(tokens(1, 256))["average_depth"]
    counted = active_tokens(ModelSettings.from_args(tiny_args(model, *flags)), 256, factors)
    assert (float(depth) - 2) * 256 == pytest.approx(sum(counted), abs=1e-3)


def counted_by_torch(name, factors, length, **settings):
    """Multiply-accumulates of a forward pass of one sequence, all logits included, as torch's own counter
    sees them.
    """
    model = tiny_model(name, eval_length_factor=factors, attention="reference", **settings)
    # the counter knows matrix products, not the CPU's fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(tokens(1, length), get_logits=True)
    return model.settings, counter.get_total_flops() // 2


@pytest.mark.parametrize("length", [7, 16])
@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("base", None),
        ("but", None),
        ("cot", None),
        ("lncot", None),
        ("adm", None),
        ("adm", [0.5, 0.25]),
        ("adm", [0.6, 0.0]),
        ("but_mod", None),
        ("but_halting", None),
    ],
)
def test_closed_form_is_what_torch_counts_of_the_model_itself(name, factors, length):
    settings, counted = counted_by_torch(name, factors, length)
    # the accounting has the last position's alone
    other_logits = (length - 1) * settings.n_embd * settings.vocab_size
    assert count_macs(settings, length, factors) + other_logits == counted


@pytest.mark.parametrize("name", ["base", "but", "cot", "lncot"])
def test_useful_work_is_what_torch_counts_less_what_causality_forbids(name):
    length = 16
    settings, counted = counted_by_torch(name, None, length)
    begin, middle, end = settings.stack_sizes
    squares = (
        begin
        + end
        + middle
        * sum(
            range(1, settings.n_repeat + 1) if settings.variant.attends == "all" else [1] * settings.n_repeat
        )
    )
    hidden = sum(1 for query in range(length) for key in range(length) if key > query)
    forbidden = squares * hidden * 2 * settings.n_embd
    assert training_flops_per_token(settings) * length == pytest.approx(6 * (counted - forbidden))
