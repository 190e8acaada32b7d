"""Bits per byte of an evaluation, against the public numbers."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from data.batch import Batch
from data.sizes import bits_per_byte
from distributed.world import World
from optim.evaluate import evaluate
from tests.reference.cases import each

FILE = "modern_gpt.json.gz"


class Rows:
    """Windows of one target row each, whose inputs are their numbers."""

    def __init__(self, targets):
        self.targets = torch.tensor(targets)

    def __len__(self):
        return len(self.targets)

    def batch(self, numbers):
        numbers = torch.from_numpy(numbers)
        return Batch({"inputs": numbers, "targets": self.targets[numbers]}, self.targets.shape[1])


class Told(torch.nn.Module):
    """A model of known losses."""

    def __init__(self, losses):
        super().__init__()
        self.losses = torch.tensor(losses, dtype=torch.float64)

    def forward(self, numbers, targets):
        losses = self.losses[numbers]
        return {"token_losses": losses, "hits": torch.zeros_like(losses), "average_depth": 1.0}


@each(FILE, "bpb", "cases")
def test_bits_per_byte(case):
    batches = case["batches"][: case["steps"]]
    targets, losses = ([row for batch in batches for row in batch[key]] for key in ("targets", "losses"))
    sizes = np.array(case["token_bytes"])
    found = evaluate(Told(losses), Rows(targets), 2, World(torch.device("cpu")), nullcontext, sizes=sizes)
    bits = bits_per_byte(found["val_loss"], found["n_tokens"], found["window_texts"])
    assert bits == pytest.approx(float(case["bits_per_byte"]), rel=1e-5)
