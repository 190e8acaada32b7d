"""Training under the autocast of CPUs, in each half precision that GPUs train in."""

from __future__ import annotations

import pytest
import torch

from models.variants import VARIANTS
from tests.helpers import tiny_model, tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_model_trains_in_half_precision(name, dtype):
    model = tiny_model(name).train()
    with torch.autocast("cpu", dtype=dtype):
        loss = model(tokens(2, 16), targets=tokens(2, 16, seed=1))["loss"]
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
