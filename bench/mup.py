"""Coordinate check of muP: how far a few steps move activations in networks of several widths, with and
without --mup_base_width (the smallest width); and which rate trains each of them best.

    python bench/mup.py [--model lncot] [--block published] [--opt adamw] [--picture mup.png]
    python bench/mup.py --train_steps 60         # the rates too: minutes

growth: exponent of the width by which the change of a layer's output since its initial weights grows, in root
mean square after the last step; 0: it is the same at every width. Tokens are of a random chain.
"""

from __future__ import annotations

import math
import statistics
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import torch
from torch import Tensor, nn

from bench.common import flags, report
from drawing import load_matplotlib
from models import make_model_from_args
from models.layers import Block
from models.transformer import Transformer
from optim.optimizers import make_optimizer

LENGTH, VOCABULARY, BATCH, HEADS, LAYERS = 32, 64, 16, 4, 4
RATES = (2.0**-10, 2.0**-9, 2.0**-8, 2.0**-7, 2.0**-6, 2.0**-5, 2.0**-4)
WAYS = ("plain", "mup")
TITLES = {"plain": "without muP", "mup": "with muP"}
LAST = 10  # steps whose mean loss is compared


def options() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lncot")
    parser.add_argument("--block", default="published", choices=("published", "modern"))
    parser.add_argument("--opt", default="adamw", choices=("adamw", "lion"))
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=5, help="of the coordinate check")
    parser.add_argument("--lr", type=float, default=2.0**-7, help="of the coordinate check")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train_steps", type=int, default=0, help="with each rate; 0: rates are left out")
    parser.add_argument("--picture", help="PNG or PDF to draw")
    return parser.parse_args()


def batches(seed: int) -> Iterator[Tensor]:
    """Sequences (BATCH, LENGTH + 1) of a chain whose next token is one of four of the one before."""
    draws = torch.Generator().manual_seed(seed)
    successors = torch.randint(VOCABULARY, (VOCABULARY, 4), generator=torch.Generator().manual_seed(0))
    while True:
        tokens = [torch.randint(VOCABULARY, (BATCH,), generator=draws)]
        for _ in range(LENGTH):
            tokens.append(successors[tokens[-1], torch.randint(4, (BATCH,), generator=draws)])
        yield torch.stack(tokens, dim=1)


def made(args: Namespace, width: int, way: str, seed: int, lr: float) -> tuple[Transformer, Any]:
    """A network in training and its optimiser, at a constant rate but for muP's multiples."""
    outer, repeats = (0, 1) if args.model == "base" else (1, 2)
    settings = flags(
        model=args.model,
        block=args.block,
        n_layer=LAYERS,
        n_layer_begin=outer,
        n_layer_end=outer,
        n_repeat=repeats,
        n_embd=width,
        n_head=HEADS,
        sequence_length=LENGTH,
        vocab_size=VOCABULARY,
        opt=args.opt,
        lr=lr,
        weight_decay=0.0,
        mup_base_width=min(args.widths) if way == "mup" else None,
    )
    torch.manual_seed(seed)
    network = make_model_from_args(settings).train()
    optimizer = make_optimizer(network, settings)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)
    return network, optimizer


def step(network: Transformer, optimizer: Any, tokens: Tensor) -> float:
    loss = network(tokens[:, :-1], targets=tokens[:, 1:])["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def outputs(network: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    """Of embeddings, blocks (of their last run) and head, by name."""
    found, hooks = {}, []
    names = {module: name.removeprefix("transformer.") for name, module in network.named_modules()}

    def keep(block: nn.Module, _: Any, output: Any) -> None:
        found[names[block]] = output[0]

    for module in names:
        if isinstance(module, Block):
            hooks.append(module.register_forward_hook(keep))
    found["embedding"] = network.transformer["wte"](tokens)
    hidden = network.run(tokens).states
    found["logits"] = network.logits(hidden)
    for hook in hooks:
        hook.remove()
    return found


def change(args: Namespace, width: int, way: str, seed: int) -> dict[str, float]:
    """Root mean square by which each output differs from that of the initial weights."""
    network, optimizer = made(args, width, way, seed, args.lr)
    source = batches(seed + 1)
    probe = next(source)[:, :-1]
    before = outputs(network, probe)
    for _ in range(args.steps):
        step(network, optimizer, next(source))
    after = outputs(network, probe)
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


def growth(widths: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the logarithms."""
    logs = [math.log(value) for value in values]
    return statistics.linear_regression([math.log(width) for width in widths], logs).slope


def coordinates(args: Namespace, way: str) -> dict[str, Any]:
    """Changes of each output at each width, the mean of the seeds, and how they grow."""
    of_width = []
    for width in args.widths:
        runs = [change(args, width, way, seed) for seed in range(args.seeds)]
        of_width.append({name: statistics.fmean(run[name] for run in runs) for name in runs[0]})
    changes = {name: [found[name] for found in of_width] for name in of_width[0]}
    slopes = {name: round(growth(args.widths, values), 3) for name, values in changes.items()}
    return {"growth": slopes, "change": changes}


def trained(args: Namespace, width: int, way: str, lr: float) -> float:
    """Mean loss of the last steps, in nats per token."""
    network, optimizer = made(args, width, way, 0, lr)
    source = batches(1)
    losses = [step(network, optimizer, next(source)) for _ in range(args.train_steps)]
    return statistics.fmean(losses[-LAST:])


def sweep(args: Namespace, way: str) -> dict[str, Any]:
    """The loss of each width with each rate, and the best rate of each width."""
    losses = {width: [trained(args, width, way, lr) for lr in RATES] for width in args.widths}
    best = {width: RATES[found.index(min(found))] for width, found in losses.items()}
    return {"loss": losses, "best_rate": best}


def draw(args: Namespace, found: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """A column without muP and one with it: changes by width, and below losses by rate."""
    matplotlib = load_matplotlib()
    from matplotlib.figure import Figure

    rows = 2 if args.train_steps else 1
    figure = Figure(figsize=(8, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, sharey="row", squeeze=False)
    colours = matplotlib.colormaps["viridis"]
    for column, way in enumerate(WAYS):
        axis, changes = axes[0][column], found[way]["change"]
        for number, (name, values) in enumerate(changes.items()):
            axis.plot(args.widths, values, "o-", color=colours(0.9 * number / (len(changes) - 1)), label=name)
        axis.set(
            xscale="log", yscale="log", title=f"{args.model}, {args.opt}, {TITLES[way]}", xlabel="--n_embd"
        )
        axis.set_xticks(args.widths, [str(width) for width in args.widths])
        axis.minorticks_off()
        if args.train_steps:
            for number, (width, losses) in enumerate(found[way]["loss"].items()):
                colour = colours(0.9 * number / max(len(args.widths) - 1, 1))
                axes[1][column].plot(RATES, losses, "o-", color=colour, label=f"width {width}")
            axes[1][column].set_xscale("log", base=2)
            axes[1][column].set(xlabel="--lr")
    axes[0][0].set_ylabel(f"change in {args.steps} steps (RMS)")
    axes[0][1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    if args.train_steps:
        axes[1][0].set_ylabel(f"loss after {args.train_steps} steps (nats per token)")
        axes[1][1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def main() -> None:
    args = options()
    found = {way: coordinates(args, way) for way in WAYS}
    if args.train_steps:
        for way in WAYS:
            found[way] |= sweep(args, way)
    if args.picture:
        draw(args, found, args.picture)
    report("mup", "cpu", **vars(args), rates=RATES, **found)


if __name__ == "__main__":
    main()
