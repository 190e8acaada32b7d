"""The data that flags name, opened by all processes of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from config.curriculum import DIFFICULTY, LENGTH, stage_lengths
from config.packing import NONE
from data.batch import BatchSource
from data.curriculum import DifficultyTurns, LengthCurriculum, hard_counts
from data.packed import Packing
from data.setup import ensure_prepared
from data.sources import Wanted
from data.text import TextData, open_text
from distributed.world import World
from optim.names import PACKING
from optim.reporting import log


def open_data(args: Any, world: World) -> TextData:
    """The data that the flags name; what is built in is prepared. Raises UserError."""
    wanted = Wanted.of(vars(args))
    world.on_main(lambda: ensure_prepared(wanted.names, args.data_dir))
    shares = None
    if wanted.is_mixture:  # one process looks which sources there are: all must read the same ones
        shares = world.on_main(lambda: wanted.shares(args.sequence_length + 1))
    populate = args.data_in_ram and world.local_rank == 0
    return world.on_all(lambda: open_text(wanted, shares, args.sequence_length, args.vocab_size, populate))


def open_source(args: Any, world: World, data: TextData, folder: Path) -> BatchSource:
    """What a training takes its samples from. folder: of the experiment, which keeps an index of packed rows.

    Raises UserError.
    """
    turns = None
    if args.curriculum == LENGTH:
        lengths = stage_lengths(args.curriculum_stages, args.curriculum_min_length, args.sequence_length)
        batch = args.batch_size * args.acc_steps
        return world.on_all(lambda: data.growing(args.data_seed, lengths, batch, args.iterations))
    if args.curriculum == DIFFICULTY:
        turns = world.on_all(lambda: _turns(args, data))
    if args.packing == NONE:
        return data.source(args.data_seed) if turns is None else data.hardening(args.data_seed, turns)
    end_of_text = world.on_main(Wanted.of(vars(args)).end_of_text)
    packing = Packing(args.packing_buffer, end_of_text, folder / PACKING)
    source = world.on_all(lambda: data.packed(args.data_seed, packing, turns))
    samples = args.iterations * args.batch_size * args.acc_steps
    for line in world.on_main(lambda: source.prepare(samples)):
        log.info(line)
    return source


def _turns(args: Any, data: TextData) -> DifficultyTurns:
    """Raises UserError where one side's sources are all missing."""
    batch = args.batch_size * args.acc_steps
    counts = hard_counts(batch, args.iterations, args.curriculum_warmup)
    return DifficultyTurns(data.weights, args.curriculum_hard, batch, counts)


def describe_source(args: Any, data: TextData, source: BatchSource) -> list[str]:
    """Lines of what a run reads."""
    samples, in_windows = args.iterations * args.batch_size * args.acc_steps, args.packing == NONE
    if isinstance(source, LengthCurriculum):
        return [*data.describe(samples, in_windows=False), *source.in_words()]
    turns = getattr(source, "turns", None)
    if isinstance(turns, DifficultyTurns):
        shares = dict(zip(turns.names, (turns.counts(samples) / samples).tolist(), strict=True))
        return [*replace(data, weights=shares).describe(samples, in_windows), turns.describe()]
    return data.describe(samples, in_windows)
