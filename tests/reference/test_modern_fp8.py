"""Which linear layers compute in FP8, against the public code's list."""

import pytest

import config
from errors import UserError
from models import fp8, make_model_from_args
from tests.reference.cases import each

each_case = each("modern_gpt.json.gz", "fp8", "cases")


def network(case):
    shape = {
        name: case["config"][name]
        for name in ("n_layer", "n_head", "n_kv_head", "n_embd", "vocab_size", "window_pattern")
    }
    return make_model_from_args(
        config.add_defaults(
            {"model": "base", "block": "modern", "sequence_length": case["config"]["sequence_len"], **shape}
        )
    )


@each_case
def test_layers_that_qualify(case):
    layers = fp8.linear_layers(network(case))
    qualified = {name for name, layer in layers.items() if fp8.qualifies(layer)}
    assert (sorted(qualified), sorted(layers.keys() - qualified)) == (
        sorted(case["fp8"]),
        sorted(case["kept"]),
    )


@pytest.mark.parametrize("recipe", [fp8.TENSORWISE, fp8.ROWWISE])
@each_case
def test_layers_that_are_converted(case, recipe):
    model = network(case)
    if not case["fp8"]:
        with pytest.raises(UserError, match="none of this network's linear layers"):
            fp8.convert(model, recipe)
        return
    fp8.convert(model, recipe)
    converted = [name for name, module in model.named_modules() if isinstance(module, fp8.Float8Linear)]
    assert sorted(converted) == sorted(case["fp8"])
