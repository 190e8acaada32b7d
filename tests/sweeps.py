"""The authors' adaptive checkpoint, the programs that sweep it, and windows of random tokens."""

from __future__ import annotations

import sys

import numpy as np
import torch

from data.batch import Batch
from tests.programs import PEER, run

ADAPTIVE = next((PEER / "exps" / "owt2").glob("adaptive*")) / "official_adm"
PLACES = ["--data_dir", str(PEER / "datasets"), "--device", "cpu"]


def program(name, output_dir, *flags):
    outcome = run(
        [
            sys.executable,
            name,
            "--checkpoint",
            str(ADAPTIVE),
            "--output_dir",
            str(output_dir),
            *PLACES,
            *flags,
        ]
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome


class Windows:
    """Windows of random tokens, as data.TokenWindows gives them."""

    length = 16

    def __len__(self):
        return 8

    def batch(self, chosen):
        idx = torch.stack([torch.from_numpy(np.random.RandomState(n).randint(0, 64, 17)) for n in chosen])
        return Batch({"inputs": idx[:, :-1], "targets": idx[:, 1:]}, idx[:, 1:].numel())
