"""What weights in bfloat16 or int8 (generate.py --weights) change of a trained network's logits and loss.

    python bench/weights.py --checkpoint exps/.../NAME [--windows 64]

Windows are spread evenly over the validation text. Differences are those of logits less their mean over the
vocabulary, which probabilities do not depend on; loss in nats a token. One line of JSON for each format.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common import report
from config.schema import Flag
from models.quantised import AS_THEY_ARE, KINDS, quantise
from optim.restore import CHECKPOINT, Restored, with_checkpoint

OWN_FLAGS = {
    "weights": (CHECKPOINT, Flag("windows", int, 64, "windows of validation text", low=1)),
}


def centred(model: Any, rows: Tensor) -> Tensor:
    logits = model(rows[:, :-1], get_logits=True)["logits"].float()
    return logits - logits.mean(-1, keepdim=True)


@torch.no_grad()
def run(restored: Restored, own: dict[str, Any]) -> None:
    model, windows = restored.model().eval(), restored.splits().val
    chosen = np.unique(np.linspace(0, windows.n_windows - 1, own["windows"]).astype(np.int64))
    for kind in KINDS:
        if kind == AS_THEY_ARE:
            continue
        other = copy.deepcopy(model)
        quantise(other, kind)
        largest, mean, same, losses = 0.0, 0.0, 0.0, np.zeros(2)
        for number in chosen:
            rows = windows_of(windows, number)
            exact, found = centred(model, rows), centred(other, rows)
            away = (found - exact).abs()
            largest, mean = max(largest, float(away.max())), mean + float(away.mean())
            same += float((found.argmax(-1) == exact.argmax(-1)).float().mean())
            losses += [float(F.cross_entropy(logits[0], rows[0, 1:])) for logits in (exact, found)]
        before, after = losses / len(chosen)
        report(
            "weights",
            "cpu",
            weights=kind,
            logits={"largest": largest, "mean": mean / len(chosen)},
            same_likeliest=same / len(chosen),
            val_loss={AS_THEY_ARE: before, kind: after, "change": after - before},
        )


def windows_of(windows: Any, number: int) -> Tensor:
    """A window's tokens, (1, T + 1)."""
    batch = windows.batch(np.array([number]))
    return torch.cat((batch["inputs"], batch["targets"][:, -1:]), dim=1)


if __name__ == "__main__":
    sys.exit(with_checkpoint("bench/weights.py", __doc__.splitlines()[0], OWN_FLAGS, None, run))
