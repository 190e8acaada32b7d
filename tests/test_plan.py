"""The plan on paper (bench/plan.py) counts the bytes that torch sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.common import flags
from bench.plan import Model, sent
from bench.scale import GRID
from data.batch import Batch
from distributed.shard import ShardedObjective
from distributed.world import World
from models import make_model_from_args
from models.settings import ModelSettings
from optim.objectives import NextToken

PROCESSES = 8


class Collectives(TorchDispatchMode):
    """Counts the bytes of the whole tensors that are gathered or scattered within."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.bytes += max(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def world() -> Iterator[World]:
    """The first of several processes, of which the others are not there."""
    dist.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    yield World(torch.device("cpu"), size=PROCESSES)
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["lncot", "lncot, checkpointing by block", "adm, all go on", "gpt"])
def test_a_fully_sharded_micro_batch_sends_what_the_plan_says(world: World, name: str) -> None:
    shape = {"n_embd": 128, "n_head": 4, "batch_size": 2, "sequence_length": 32, "vocab_size": 512}
    args = flags(**{**shape, **GRID[name]})
    idx = torch.zeros(2, 32, dtype=torch.int64)
    batch = Batch({"inputs": idx, "targets": idx}, idx.numel())
    objective = ShardedObjective(NextToken(make_model_from_args(args)), [], world)
    objective(batch).mean.backward()  # at the first time it finds out what follows what
    with Collectives() as collectives:
        objective(batch).mean.backward()
    traffic = sent(Model(ModelSettings.from_args(args), 2), PROCESSES, "full", micro_batches=1)
    mine = collectives.bytes * (PROCESSES - 1) / PROCESSES
    assert mine == pytest.approx(traffic.total, rel=0.005)
