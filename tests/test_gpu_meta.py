"""No model mixes tensors of the CPU into those of another device: shown on the meta device, which has shapes
but no numbers, and where such a mixture is an error.
"""

from __future__ import annotations

import pytest
import torch

from models.variants import VARIANTS
from optim.optimizers import make_optimizer
from tests.helpers import tiny_args, tiny_model

META = torch.device("meta")


def on_meta(name: str, **settings):
    """A model, and tokens and targets, on the meta device."""
    model = tiny_model(name, **settings).to(META)
    return model, *torch.zeros(2, 2, 16, dtype=torch.int64, device=META)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_training_step_stays_on_its_device(name):
    model, idx, targets = on_meta(name)
    model.train()(idx, targets=targets)["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert {gradient.device.type for gradient in gradients} == {"meta"}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_evaluation_stays_on_its_device(name):
    model, idx, targets = on_meta(name)
    with torch.no_grad():
        out = model(idx, targets=targets, get_logits=True)
    found = [out[key] for key in ("logits", "loss", "token_losses", "hits", "average_depth") if key in out]
    assert {each.device.type for each in found} == {"meta"}


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", ["lncot", "adm"])
def test_tokens_that_leave_and_windows_stay_on_their_device(name, window):
    model, idx, targets = on_meta(name, attention_window_length=window, training_length_factor=[0.5, 0.25])
    assert model.train()(idx, targets=targets)["loss"].device == META


def test_modern_blocks_stay_on_their_device():
    model, idx, targets = on_meta("base", block="modern", window_pattern="SL")
    loss = model(idx, targets=targets)["loss"]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert {gradient.device.type for gradient in gradients} == {"meta"}


@pytest.mark.parametrize("opt", ["adamw", "sgd", "muon"])
def test_the_optimizer_stays_on_its_device(opt):
    model, idx, targets = on_meta("lncot")
    optimizer = make_optimizer(model, tiny_args("lncot", opt=opt))
    model.train()(idx, targets=targets)["loss"].backward()
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values() if torch.is_tensor(value)]
    assert {value.device.type for value in state if value.dim()} == {"meta"}


def test_a_mixture_is_an_error():
    model, idx, _ = on_meta("lncot")
    model.transformer["wte"].to_empty(device="cpu")
    with pytest.raises(RuntimeError):
        model(idx)
