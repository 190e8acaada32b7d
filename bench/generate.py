"""Generation with kept keys against running the whole prefix for each token, as published.

    python bench/generate.py [--n_embd 768] [--prompt 1] [--tokens 256] [--dtype float32]

The plain way is timed at eight lengths of the prefix, spread evenly, that take turns with a stretch of the
kept one, and with products of a matrix and a vector that show how long reading the weights of these tokens
takes: nothing that makes one token at a time is faster.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import torch

from bench.common import arguments, autocast, flags, report, seconds
from models import make_model_from_args
from optim.generation import Sampling, Session, generate

LENGTHS = 8


def main() -> None:
    args = arguments(__doc__, n_embd=768, n_layer=6, prompt=1, tokens=256, model="lncot")
    torch.manual_seed(0)
    settings = flags(
        n_embd=args.n_embd,
        n_head=max(1, args.n_embd // 64),
        n_layer=args.n_layer,
        sequence_length=args.prompt + args.tokens,
        model=args.model,
    )
    model = make_model_from_args(settings).to(args.device).eval()
    device = torch.device(args.device)
    said = generate(
        Session(model, 1, device, lambda: autocast(args.device, args.dtype)),
        [[0] * args.prompt],
        args.tokens,
        Sampling(),
        0,
        settings.vocab_size,
        lambda row, new: False,
    )

    @torch.no_grad()
    def whole(length: int) -> None:
        with autocast(args.device, args.dtype):
            model(torch.zeros(1, length, dtype=torch.int64, device=device), get_logits=True)

    passes = {"h_mid": settings.n_repeat}
    needed = settings.vocab_size * args.n_embd + sum(
        p.numel() * passes.get(stack, 1)
        for stack in ("h_begin", "h_mid", "h_end")
        for p in model.transformer[stack].parameters()
    )
    weights, vector = (
        torch.randn(needed // args.n_embd, args.n_embd, device=device),
        torch.randn(args.n_embd, device=device),
    )
    whole(args.prompt + args.tokens)
    kept = plain = bound = 0.0
    stretch = max(1, args.tokens // LENGTHS)
    for number in range(LENGTHS):
        kept += seconds(lambda: [next(said) for _ in range(stretch)], args.device)
        plain += stretch * seconds(lambda: whole(args.prompt + stretch * number + stretch // 2), args.device)  # noqa: B023
        bound += stretch * seconds(lambda: [weights @ vector for _ in range(4)], args.device) / 4
    report(
        "generate",
        args.device,
        dtype=args.dtype,
        model=args.model,
        n_embd=args.n_embd,
        prompt=args.prompt,
        tokens=args.tokens,
        seconds={"plain": plain, "kept": kept, "reading_weights": bound},
        tokens_per_second=stretch * LENGTHS / kept,
        speedup=plain / kept,
        speedup_if_only_weights_were_read=plain / bound,
    )


if __name__ == "__main__":
    main()
