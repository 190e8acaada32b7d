"""What a training holds in memory by formula, and which micro-batches fit a card.

    python -m optim.fits [--cards 24 48 80 141] [--processes N] -- FLAGS OF main.py

Cards are in GB, 10^9 bytes, of which a tenth is left for what no formula counts: the device's context, the
allocator's gaps, the libraries' workspaces. The first part is of the flags as given, in bfloat16 where
--dtype is auto; the second has the largest --batch_size of each way to save memory. Exit code 0 also where
nothing fits; 2 for bad input.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

import config
from errors import UserError
from models.footprint import (
    Training,
    cache_bytes,
    checkpoint_bytes,
    footprint,
    largest_micro_batch,
    numbers,
    parameters,
)
from models.settings import ModelSettings

PROG = "optim.fits"
CARDS = (24, 48, 80, 141)  # GB
LEFT_FREE = 0.1  # of a card
GIB = 2**30
SHARDS = ("none", "optimizer", "full")
WAYS = ("none", "pass", "block")


def usable(card: float) -> int:
    """Bytes of a card of so many GB that tensors may take."""
    return int(card * 1e9 * (1 - LEFT_FREE))


def training_of(args: Namespace, processes: int = 1) -> Training:
    """Of the flags of main.py. Raises UserError for flags that the formulas do not know."""
    if "sequence_length" not in args:
        raise UserError("there are formulas for networks of text alone")
    if args.acc_steps % processes:
        raise UserError(f"--acc_steps {args.acc_steps} cannot be shared by {processes} processes")
    shares, dtype = args.training_length_factor, args.dtype
    if dtype == "auto":
        dtype = "bfloat16"
    return Training(
        batch_size=args.batch_size,
        dtype=dtype,
        opt=args.opt,
        processes=processes,
        micro_batches=args.acc_steps // processes,
        shard=getattr(args, "shard", "none"),
        shares=None if shares is None else tuple(shares),
    )


def ways(settings: ModelSettings, training: Training) -> list[tuple[str, ModelSettings, Training]]:
    """The ways to save memory by name; a model without passes has no checkpointing by pass."""
    found = []
    for shard in SHARDS:
        if shard != "none" and (training.processes == 1 or training.opt != "adamw"):
            continue
        for way in WAYS:
            if way == "pass" and not settings.variant.loop:
                continue
            name = f"--activation_checkpointing {way} --shard {shard}"
            chosen = replace(settings, activation_checkpointing=way)
            found.append((name, chosen, replace(training, shard=shard)))
    return found


def lines(settings: ModelSettings, training: Training, cards: Sequence[float]) -> list[str]:
    memory, weights = footprint(settings, training), numbers(parameters(settings))
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        f"states of {training.opt}": memory.states,
        "kept for the backward pass": memory.kept,
        **{f"peak of phase {name}": size for name, size in memory.phases.items()},
        "checkpoint file": checkpoint_bytes(settings, training.opt),
        "keys and values of one generated sequence": cache_bytes(settings, settings.sequence_length),
    }
    text = [
        f"{settings.stack_in_words}, n_embd {settings.n_embd}, {weights:,} weights; a micro-batch of"
        f" {training.batch_size} x {settings.sequence_length} tokens in {training.dtype}, process 1 of"
        f" {training.processes}"
    ]
    text += [f"{size / GIB:10.3f} GiB  {name}" for name, size in parts.items()]
    text.append(f"{memory.peak / GIB:10.3f} GiB  the largest phase, {memory.largest_phase}")
    text.append(f"in cards (GB are 10^9 bytes), of which {LEFT_FREE:.0%} is left free:")
    for card in cards:
        verdict = "fits" if memory.peak <= usable(card) else "does not fit"
        text.append(f"{card:g} GB: {verdict}")
    text.append(f"largest --batch_size in {', '.join(f'{card:g}' for card in cards)} GB:")
    for name, chosen, how in ways(settings, training):
        sizes = [f"{largest_micro_batch(chosen, how, usable(card)):6,}" for card in cards]
        text.append(f"{' '.join(sizes)}  {name}")
    return text


def run(argv: Sequence[str]) -> int:
    words, flags = list(argv), []
    if "--" in words:
        separator = words.index("--")
        words, flags = words[:separator], words[separator + 1 :]
    elif not {"-h", "--help"} & set(words):
        raise UserError("give the flags of main.py after --: python -m optim.fits -- --model lncot ...")
    parser = config.Arguments(
        prog=PROG, description="Memory of a training by formula. Flags of main.py: after --"
    )
    parser.add_argument(
        "--cards", type=float, nargs="+", default=CARDS, help="memory of each card in GB (24 48 80 141)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="GPUs that share a step, one process each (1)"
    )
    own = parser.parsed(words)
    if own.processes < 1 or not all(0 < card < float("inf") for card in own.cards):
        raise UserError("--processes and --cards must be above 0")
    args = config.parse_args(flags)
    training = training_of(args, own.processes)
    print("\n".join(lines(ModelSettings.from_args(args), training, own.cards)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return config.guarded(PROG, lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
