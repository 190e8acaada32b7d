"""One process, or DDP under torchrun, behind one interface: launch.py knows the launcher, world.py the other
processes.

    world = start(args.distributed_backend, args.device)
    with world:
        model = world.wrap(model, may_leave_unused=False)
        ...
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from distributed.launch import die_with_launcher, launched_world_size, run_and_end, under_torchrun

if TYPE_CHECKING:
    from distributed.world import World

__all__ = ["launched_world_size", "run_and_end", "start", "under_torchrun"]


def start(backend: str | None, device: str, watchdog_minutes: float = 0.0) -> World:
    """Join the processes that torchrun started, or be alone: `world.join`."""
    die_with_launcher()
    # else DDP warns of its search for unused parameters, which is meant as it is
    if launched_world_size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from distributed.world import join  # torch is loaded here

    return join(backend, device, watchdog_minutes)
