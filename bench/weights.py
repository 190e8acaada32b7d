"""What weights in bfloat16 or int8 (generate.py --weights) change of a trained network's logits and loss.

    python bench/weights.py --checkpoint exps/.../NAME [--windows 64]
    python bench/weights.py --checkpoint exps/.../NAME --one_by_one 128 --windows 16      # as new tokens are

Windows are spread evenly over the validation text. As a whole, their products are those of prompts;
--one_by_one takes the first tokens of each a token at a time, with the products of a single row and the keys
and values kept. Differences are those of logits less their mean over the vocabulary, which probabilities do
not depend on; loss in nats a token. One line of JSON for each format.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common import report
from config.schema import Flag
from errors import UserError
from models.quantised import AS_THEY_ARE, KINDS, quantise
from optim.generation import Session
from optim.restore import CHECKPOINT, Restored, with_checkpoint

OWN_FLAGS = {
    "weights": (
        CHECKPOINT,
        Flag("windows", int, 64, "windows of validation text", low=1),
        Flag("one_by_one", int, 0, "tokens of each window to take one at a time; 0 = whole windows", low=0),
    ),
}
# of a network, after each of some tokens (T,): (T, V)
Logits = Callable[[Any, Tensor], Tensor]


def of_whole_row(model: Any, tokens: Tensor) -> Tensor:
    """As a prompt: all tokens in one product."""
    logits: Tensor = model(tokens[None], get_logits=True)["logits"][0]
    return logits.float()


def of_single_tokens(model: Any, tokens: Tensor) -> Tensor:
    """As new tokens are made."""
    session = Session(model, 1, tokens.device)
    return torch.cat([session.extend([[token]]) for token in tokens.tolist()])


def differences(exact: Any, rounded: Any, rows: list[Tensor], logits_of: Logits) -> dict[str, Any]:
    """Of two networks, over rows of tokens, (T + 1,) each."""
    largest, mean, same, losses = 0.0, 0.0, 0.0, np.zeros(2)
    for row in rows:
        pair = [logits_of(model, row[:-1]) for model in (exact, rounded)]
        losses += [float(F.cross_entropy(logits, row[1:])) for logits in pair]
        one, other = [logits - logits.mean(-1, keepdim=True) for logits in pair]
        away = (other - one).abs()
        largest, mean = max(largest, float(away.max())), mean + float(away.mean())
        same += float((other.argmax(-1) == one.argmax(-1)).float().mean())
    before, after = losses / len(rows)
    return {
        "logits": {"largest": largest, "mean": mean / len(rows)},
        "same_likeliest": same / len(rows),
        "val_loss": {AS_THEY_ARE: before, "rounded": after, "change": after - before},
    }


def row_of(windows: Any, number: int) -> Tensor:
    """A window's tokens, (T + 1,)."""
    batch = windows.batch(np.array([number]))
    return torch.cat((batch["inputs"][0], batch["targets"][0, -1:]))


@torch.no_grad()
def run(restored: Restored, own: dict[str, Any]) -> None:
    model, windows, count = restored.model(), restored.splits().val, own["one_by_one"]
    if count and model.settings.variant.routes and model.settings.routing != "threshold":
        raise UserError("--one_by_one: routed models take new tokens by threshold; give --routing threshold")
    chosen = np.unique(np.linspace(0, windows.n_windows - 1, own["windows"]).astype(np.int64))
    rows = [row_of(windows, number) for number in chosen]
    if count:
        rows = [row[: count + 1] for row in rows]
    tokens = {"one_by_one" if count else "whole_rows": sum(len(row) - 1 for row in rows)}
    for kind in KINDS:
        if kind == AS_THEY_ARE:
            continue
        rounded = copy.deepcopy(model)
        quantise(rounded, kind)
        found = differences(model, rounded, rows, of_single_tokens if count else of_whole_row)
        report("weights", "cpu", weights=kind, n_embd=model.settings.n_embd, tokens=tokens, **found)


if __name__ == "__main__":
    sys.exit(with_checkpoint("bench/weights.py", __doc__.splitlines()[0], OWN_FLAGS, None, run))
