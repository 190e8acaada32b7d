"""Time of an adaptive model at half the multiply-accumulates against full depth, in evaluation and in
training.

    python bench/budget.py [--n_embd 768] [--share 0.5] [--rounds 7]

The same share of tokens goes on after each pass, chosen so that the budget is met.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import dataclasses

import torch

from bench.common import alternate, arguments, autocast, flags, report
from models import make_model_from_args
from models.settings import ModelSettings
from optim.routers import share_of_macs


def factors_for(settings: ModelSettings, budget: float) -> list[float]:
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        factors = [middle**number for number in range(1, settings.n_repeat)]
        low, high = (low, middle) if share_of_macs(settings, factors) > budget else (middle, high)
    return [low**number for number in range(1, settings.n_repeat)]


def main() -> None:
    args = arguments(__doc__, n_embd=768, n_layer=6, batch_size=8, sequence_length=256, rounds=7, share=0.5)
    torch.manual_seed(0)
    settings = flags(
        model="adm",
        n_embd=args.n_embd,
        n_head=max(1, args.n_embd // 64),
        n_layer=args.n_layer,
        sequence_length=args.sequence_length,
    )
    model = make_model_from_args(settings).to(args.device)
    idx = torch.randint(0, settings.vocab_size, (args.batch_size, args.sequence_length), device=args.device)
    full = [1.0] * (settings.n_repeat - 1)
    half = factors_for(model.settings, args.share)

    def forward(factors: list[float], training: bool) -> None:
        model.train(training).settings = dataclasses.replace(
            model.settings, eval_length_factor=tuple(factors), training_length_factor=tuple(factors)
        )
        with torch.set_grad_enabled(training), autocast(args.device, args.dtype):
            loss = model(idx, targets=idx)["loss"]
        if training:
            loss.backward()
            model.zero_grad()

    times = alternate(
        {
            "full": lambda: forward(full, False),
            "half": lambda: forward(half, False),
            "training_full": lambda: forward(full, True),
            "training_half": lambda: forward(half, True),
        },
        args.rounds,
        args.device,
    )
    report(
        "budget",
        args.device,
        dtype=args.dtype,
        n_embd=args.n_embd,
        batch_size=args.batch_size,
        factors=half,
        share_of_macs=share_of_macs(model.settings, half),
        seconds=times,
        time_ratio=times["half"] / times["full"],
        training_time_ratio=times["training_half"] / times["training_full"],
    )


if __name__ == "__main__":
    main()
