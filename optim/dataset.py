"""The data that flags name, opened by all processes of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from config.packing import NONE
from data.batch import BatchSource
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
    if args.packing == NONE:
        return data.source(args.data_seed)
    end_of_text = world.on_main(Wanted.of(vars(args)).end_of_text)
    packing = Packing(args.packing_buffer, end_of_text, folder / PACKING)
    source = world.on_all(lambda: data.packed(args.data_seed, packing))
    samples = args.iterations * args.batch_size * args.acc_steps
    for line in world.on_main(lambda: source.prepare(samples)):
        log.info(line)
    return source
