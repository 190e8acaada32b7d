"""Weights are loaded strictly, and what differs is named."""

import re

import pytest
import torch

from errors import UserError
from models.weights import load_weights
from tests.helpers import same, tiny_model


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_load_from_under_wrappers(prefix):
    source = tiny_model("lncot", seed=1)
    target = tiny_model("lncot", seed=2)
    load_weights(target, {prefix + name: value for name, value in source.state_dict().items()})
    assert same(dict(target.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize("extra", ["transformer.h_mid.0.attn.bias", "transformer.mod.2.mod_router.weight"])
def test_names_that_the_authors_have_beside_ours_are_tolerated(extra):
    model = tiny_model("adm")
    load_weights(model, {**model.state_dict(), extra: torch.zeros(1, 32)})
    assert extra not in model.state_dict()


def test_missing_angles_are_tolerated():
    model = tiny_model("lncot")
    load_weights(
        model, {name: value for name, value in model.state_dict().items() if name != "transformer.wpe.freqs"}
    )
    assert model.transformer["wpe"].freqs[0] == 1.0


def test_weight_of_another_shape_is_named_with_both_shapes():
    state = {**tiny_model("lncot").state_dict(), "transformer.ln_mid.weight": torch.zeros(48)}
    with pytest.raises(
        UserError, match=r"transformer\.ln_mid\.weight is \(48,\) in the file, \(32,\) in this model"
    ):
        load_weights(tiny_model("lncot"), state)


def test_weights_that_fail_to_load_change_nothing():
    model = tiny_model("lncot", seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(
            model, {**tiny_model("lncot", seed=2).state_dict(), "transformer.ln_mid.weight": torch.zeros(48)}
        )
    assert same(dict(model.state_dict()), before)


@pytest.mark.parametrize(
    ("of", "into", "said"),
    [
        ("lncot", "cot", r"it has the unknown transformer\.ln_mid\.weight"),
        ("cot", "lncot", r"it lacks transformer\.ln_mid\.weight"),
        ("base", "cot", r"it has the unknown transformer\.h\.0\.attn\.c_attn\.weight; \d+ more names differ"),
    ],
)
def test_weights_of_another_model_name_the_difference(of, into, said):
    with pytest.raises(UserError, match="the file is of another model: " + said):
        load_weights(tiny_model(into), tiny_model(of).state_dict())


@pytest.mark.parametrize(
    "missing", ["transformer.ln_f.weight", "transformer.mod.0.mod_router.weight", "lm_head.weight"]
)
def test_missing_weight_is_named(missing):
    state = tiny_model("adm").state_dict()
    del state[missing]
    with pytest.raises(UserError, match=f"it lacks {re.escape(missing)}"):
        load_weights(tiny_model("adm"), state)
