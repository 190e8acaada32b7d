"""The data that flags name, opened by all processes of a run."""

from __future__ import annotations

from typing import Any

from data.setup import ensure_prepared
from data.sources import Wanted
from data.text import TextData, open_text
from distributed.world import World


def open_data(args: Any, world: World) -> TextData:
    """The data that the flags name; what is built in is prepared. Raises UserError."""
    wanted = Wanted.of(vars(args))
    world.on_main(lambda: ensure_prepared(wanted.names, args.data_dir))
    shares = None
    if wanted.is_mixture:  # one process looks which sources there are: all must read the same ones
        shares = world.on_main(lambda: wanted.shares(args.sequence_length + 1))
    populate = args.data_in_ram and world.local_rank == 0
    return world.on_all(lambda: open_text(wanted, shares, args.sequence_length, args.vocab_size, populate))
