"""Generation with kept keys against running the whole prefix for each token, as published.

    python bench/generate.py [--n_embd 768] [--prompt 1] [--tokens 256] [--dtype float32]
    python bench/generate.py --weights bfloat16,int8      # and generate.py --weights, in the same turns
    python bench/generate.py --exported 1                 # and an exported folder in transformers, greedily,
                                                          # rounded too where --weights is given

The plain way is timed at eight lengths of the prefix, spread evenly, that take turns with a stretch of the
kept one, and with products of a matrix and a vector that show how long reading the weights of these tokens
takes: nothing that makes one token at a time is faster.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import torch

from bench.common import arguments, autocast, flags, report, seconds
from models import make_model_from_args
from models.quantised import AS_THEY_ARE, quantise
from models.settings import ModelSettings
from models.transformer import Transformer
from optim.generation import Sampling, Session, generate

LENGTHS = 8
ROUNDS = 3  # of an exported model


def tokens_of(
    model: Transformer, args: Namespace, sampling: Sampling, dtype: str = "float32"
) -> Iterator[tuple[int, int]]:
    """The new tokens, as generate.py makes them."""
    session = Session(model, 1, torch.device(args.device), lambda: autocast(args.device, dtype))
    vocabulary = model.settings.vocab_size
    return generate(
        session, [[0] * args.prompt], args.tokens, sampling, 0, vocabulary, lambda row, new: False
    )


def exported(model: Transformer, settings: Namespace, args: Namespace, kind: str) -> dict[str, float]:
    """Milliseconds a token, in turns, greedily: ours, the exported folder's by transformers' generate, and
    the share of the latter that is not its forward pass. kind: the format in which both read their weights.
    """
    from transformers import AutoModelForCausalLM

    from models.export import export

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "exported"
        export(ModelSettings.from_args(settings), model.state_dict(), folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    own_model = copy.deepcopy(model)
    quantise(own_model, kind)
    theirs.round_weights(kind)
    inside, forward = [0.0], theirs.forward

    def timed(*given: object, **named: object) -> object:
        begin = time.perf_counter()
        out = forward(*given, **named)
        inside[0] += time.perf_counter() - begin
        return out

    # transformers looks at the signature of the class
    theirs.forward = timed
    prompt = torch.zeros(1, args.prompt, dtype=torch.int64)
    rows = []
    for _ in range(ROUNDS):
        ours: list[tuple[int, int]] = []
        own = seconds(lambda: ours.extend(tokens_of(own_model, args, Sampling(0))), args.device)  # noqa: B023
        inside[0], said = 0.0, []
        whole = seconds(
            lambda: said.append(theirs.generate(prompt, max_new_tokens=args.tokens, do_sample=False)),  # noqa: B023
            args.device,
        )
        assert said[0][0, args.prompt :].tolist() == [token for _, token in ours], "other tokens"
        rows.append((own, whole, whole - inside[0]))
    names = "generate.py", "exported", "exported_beside_forward"
    return {
        name: statistics.median(column) * 1e3 / args.tokens
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def read_by_a_token(model: Transformer) -> int:
    """Numbers of weights that a new token reads: those of the middle blocks once a pass."""
    passes = {"h_mid": model.settings.n_repeat}
    return model.lm_head.weight.numel() + sum(
        p.numel() * passes.get(stack, 1)
        for stack in ("h_begin", "h_mid", "h_end")
        for p in model.transformer[stack].parameters()
    )


def main() -> None:
    names = {"n_embd": 768, "n_layer": 6, "prompt": 1, "tokens": 256, "model": "lncot"}
    args = arguments(__doc__, **names, weights="", exported=0)
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
    said = tokens_of(model, args, Sampling(), args.dtype)
    of_kinds = {}
    for kind in filter(None, args.weights.split(",")):
        other = copy.deepcopy(model)
        quantise(other, kind)
        of_kinds[kind] = tokens_of(other, args, Sampling())
    kinds = dict.fromkeys(of_kinds, 0.0)

    @torch.no_grad()
    def whole(length: int) -> None:
        with autocast(args.device, args.dtype):
            model(torch.zeros(1, length, dtype=torch.int64, device=device), get_logits=True)

    needed = read_by_a_token(model)
    weights, vector = (
        torch.randn(needed // args.n_embd, args.n_embd, device=device),
        torch.randn(args.n_embd, device=device),
    )
    whole(args.prompt + args.tokens)
    kept = plain = bound = 0.0
    stretch = max(1, args.tokens // LENGTHS)
    for number in range(LENGTHS):
        kept += seconds(lambda: [next(said) for _ in range(stretch)], args.device)
        for kind, its in of_kinds.items():
            kinds[kind] += seconds(lambda: [next(its) for _ in range(stretch)], args.device)  # noqa: B023
        plain += stretch * seconds(lambda: whole(args.prompt + stretch * number + stretch // 2), args.device)  # noqa: B023
        bound += stretch * seconds(lambda: [weights @ vector for _ in range(4)], args.device) / 4
    more = {}
    if args.exported:
        formats = AS_THEY_ARE, *of_kinds
        more = {"ms_a_token": {kind: exported(model, settings, args, kind) for kind in formats}}
    report(
        "generate",
        args.device,
        dtype=args.dtype,
        model=args.model,
        n_embd=args.n_embd,
        prompt=args.prompt,
        tokens=args.tokens,
        seconds={"plain": plain, "kept": kept, **kinds, "reading_weights": bound},
        tokens_per_second=stretch * LENGTHS / kept,
        speedup=plain / kept,
        speedup_of_weights={kind: plain / taken for kind, taken in kinds.items()},
        speedup_if_only_weights_were_read=plain / bound,
        **more,
    )


if __name__ == "__main__":
    main()
