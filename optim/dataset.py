"""The dataset that flags name, opened by all processes of a run."""

from __future__ import annotations

from typing import Any

from data import Splits, open_splits
from data.setup import ensure_prepared
from distributed.world import World


def open_data(args: Any, world: World) -> Splits:
    """The dataset that the flags name, prepared if it is the built-in one. Raises UserError."""
    world.on_main(lambda: ensure_prepared(args.dataset, args.data_dir))
    return world.on_all(
        lambda: open_splits(
            args.dataset,
            args.data_dir,
            args.sequence_length,
            args.vocab_size,
            populate=args.data_in_ram and world.local_rank == 0,
        )
    )
