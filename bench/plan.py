"""Trainings on 8, 64 and 512 GPUs on paper: prints the tables of docs/scale.md. Nothing here is measured.

    python bench/plan.py [--peak_tflops 989] [--alone 0.4] [--nvlink_gbs 450] [--disk_gbs 1] [--gather_gbs 1]

--peak_tflops, --nvlink_gbs: what the maker states of an H100 (SXM), and of NVLink in one direction.
--alone: share of the peak that one GPU is assumed to reach. --disk_gbs, --gather_gbs: assumed rates at which
one process writes a file, and takes in the shards of all others over gloo.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import math
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import config
from models.footprint import (
    FLOAT,
    Training,
    block_numbers,
    checkpoint_bytes,
    footprint,
    largest_micro_batch,
    numbers,
    parameters,
    repeated_numbers,
)
from models.macs import training_flops_per_token
from models.settings import ModelSettings
from optim.fits import CARDS, SHARDS, WAYS, usable

GPUS_PER_NODE = 8
CLUSTERS = (8, 64, 512)
SEVERAL = 2  # micro-batches, so that gradients of those before are held
LINKS = (100, 400, 3200)  # Gb/s of all network cards of a node together
# unexpected interruptions a day and GPU: 419 in 54 days on 16,384 GPUs (The Llama 3 Herd of Models, 2024)
INTERRUPTIONS = 419 / 54 / 16384
LNCOT = (
    "--model lncot --n_layer 24 --n_repeat 5 --n_layer_begin 2 --n_layer_end 1 --n_embd 768 --n_head 12"
    " --sequence_length 256 --depth_embedding linear_learned"
)
MODELS = {
    "LN-CoTFormer 24 x 5": LNCOT,
    "adaptive 24 x 5": LNCOT.replace("lncot", "adm"),
    **{f"gpt d{depth}": f"gpt --depth {depth} --opt adamw" for depth in (12, 20, 26, 40)},
}


@dataclass(frozen=True)
class Model:
    """batch: sequences of a step."""

    settings: ModelSettings
    batch: int
    opt: str = "adamw"

    @classmethod
    def of(cls, words: str) -> Model:
        args = config.parse_args(words.split())
        return cls(ModelSettings.from_args(args), args.batch_size * args.acc_steps)

    @property
    def uses(self) -> int:
        """Runs of blocks in a forward pass."""
        begin, middle, end = self.settings.stack_sizes
        return begin + end + middle * (self.settings.n_repeat if self.settings.variant.loop else 1)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


@dataclass(frozen=True)
class Traffic:
    """Bytes that a process sends in a step, by rings; as many come in. beside: while it computes; alone:
    while nothing does.
    """

    beside: float
    alone: float

    @property
    def total(self) -> float:
        return self.beside + self.alone


def sent(model: Model, gpus: int, shard: str, micro_batches: int) -> Traffic:
    """optimizer: the new weights go out after the step.

    full: each run of a block gathers it, forward and backward, in each micro-batch, whose gradients are
    scattered once; what is outside of the blocks, and blocks that tokens leave, are gathered once, before
    all others, and scattered after them.
    """
    parts = parameters(model.settings)
    whole, blocks, others = FLOAT * numbers(parts), FLOAT * block_numbers(parts), (gpus - 1) / gpus
    if shard != "full":
        return Traffic(2 * others * whole, others * whole * (shard == "optimizer"))
    runs = blocks * model.uses / model.settings.n_layer
    if model.settings.variant.variable_tokens:
        middle = FLOAT * repeated_numbers(model.settings, parts)
        blocks, runs = blocks - middle, blocks - middle
    each = others * micro_batches
    return Traffic(each * (2 * runs + blocks), each * 2 * (whole - blocks))


def rate(gpus: int, gigabits: int, options: Namespace) -> float:
    """Bytes a second of a ring: of NVLink in a node, of the node's network cards beyond it."""
    return 1e9 * (options.nvlink_gbs if gpus <= GPUS_PER_NODE else min(options.nvlink_gbs, gigabits / 8))


def print_what_fits(models: dict[str, Model]) -> None:
    print(
        f"Largest micro-batch in {', '.join(f'{card} GB' for card in CARDS)}; bfloat16, AdamW, 8 processes\n"
    )
    rows = []
    for name, model in models.items():
        for shard in SHARDS:
            for way in WAYS:
                if way == "pass" and not model.settings.variant.loop:
                    continue
                settings = replace(model.settings, activation_checkpointing=way)
                training = Training(1, "bfloat16", processes=8, micro_batches=SEVERAL, shard=shard)
                sizes = [largest_micro_batch(settings, training, usable(card)) for card in CARDS]
                rows.append([name, way, shard, *(f"{size:,}" for size in sizes)])
    table(["model", "checkpointing", "shard", *(f"{card} GB" for card in CARDS)], rows)


def step_cells(model: Model, gpus: int, shard: str, largest: int, options: Namespace) -> list[str]:
    """A row of print_traffic. largest: micro-batch that fits."""
    each = model.batch // gpus
    micro = math.ceil(each / largest)
    flops = training_flops_per_token(model.settings) * model.settings.sequence_length
    traffic = sent(model, gpus, shard, micro)
    compute = each * flops / (options.peak_tflops * 1e12 * options.alone)
    # gradients are averaged in the last backward pass alone, blocks gathered all the time
    hides = compute if shard == "full" else 2 / 3 * compute / micro
    cells = [f"{each} / {micro}", f"{traffic.total / 1e9:.1f} GB", f"{compute:.2f} s"]
    for gigabits in LINKS:
        ring = rate(gpus, gigabits, options)
        exposed = max(0.0, traffic.beside / ring - hides) + traffic.alone / ring
        cells.append(f"{options.alone * compute / (compute + exposed):.2f}")
    return cells


def print_traffic(models: dict[str, Model], options: Namespace) -> None:
    """Of 80 GB, nothing computed again."""
    print("A step: bytes that a GPU sends, and the expected share of the peak by Gb/s of a node; 80 GB\n")
    rows = []
    for name, model in models.items():
        limit = usable(80)
        for gpus in CLUSTERS:
            for shard in SHARDS:
                training = Training(1, "bfloat16", processes=gpus, micro_batches=SEVERAL, shard=shard)
                largest = largest_micro_batch(model.settings, training, limit)
                if model.batch < gpus or not largest:
                    why = "too few sequences" if model.batch < gpus else "does not fit"
                    rows.append([name, str(gpus), shard, why, *["-"] * (2 + len(LINKS))])
                    continue
                rows.append([name, str(gpus), shard, *step_cells(model, gpus, shard, largest, options)])
    head = ["model", "GPUs", "shard", "sequences a GPU / micro-batches", "sent", "computing"]
    table([*head, *(f"{gigabits} Gb/s" for gigabits in LINKS)], rows)


def print_checkpoints(models: dict[str, Model], options: Namespace) -> None:
    """Of AdamW; the interval is Young's, the root of twice the stall times the time between interruptions."""
    print("Checkpoints, and restarts a day\n")
    rows = []
    for name, model in models.items():
        size = checkpoint_bytes(model.settings, "adamw")
        gather, write = size / options.gather_gbs / 1e9, size / options.disk_gbs / 1e9
        rows.append([name, f"{size / 1e9:.1f} GB", f"{gather:.0f} s", f"{write:.0f} s"])
    table(["model", "file", "gathered from shards (the loop waits)", "written (in the background)"], rows)
    rows = []
    for gpus in CLUSTERS:
        between = 86400 / (INTERRUPTIONS * gpus)
        best = [f"{math.sqrt(2 * stall * between) / 60:.0f} min" for stall in (1, 10, 60)]
        rows.append([str(gpus), f"{INTERRUPTIONS * gpus:.3f}", *best])
    table(["GPUs", "interruptions a day", "save every, stall 1 s", "10 s", "60 s"], rows)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, default in {
        "peak_tflops": 989.0,
        "alone": 0.4,
        "nvlink_gbs": 450.0,
        "disk_gbs": 1.0,
        "gather_gbs": 1.0,
    }.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    options = parser.parse_args()
    for name, rate_or_share in vars(options).items():
        if not 0 < rate_or_share < math.inf:
            parser.error(f"--{name} must be above 0, not {rate_or_share:g}")
    if options.alone > 1:
        parser.error(f"--alone is a share of the peak: at most 1, not {options.alone:g}")
    models = {name: Model.of(words) for name, words in MODELS.items()}
    rows = []
    for name, model in models.items():
        memory = footprint(model.settings, Training(1, "bfloat16"))
        sizes = (memory.weights, memory.gradients, memory.states, memory.kept)
        kept = [f"{size / 2**30:.2f}" for size in sizes]
        tokens = model.batch * model.settings.sequence_length
        rows.append([name, f"{memory.weights / FLOAT / 1e6:,.0f} M", *kept, f"{model.batch:,} ({tokens:,})"])
    print("GiB of one sequence, bfloat16, AdamW\n")
    head = ["model", "weights", "weights", "gradients", "moments", "kept + loss", "sequences a step (tokens)"]
    table(head, rows)
    fixed = {name: model for name, model in models.items() if not model.settings.variant.routes}
    print_what_fits(fixed)
    print_traffic(fixed, options)
    print_checkpoints(models, options)


if __name__ == "__main__":
    main()
