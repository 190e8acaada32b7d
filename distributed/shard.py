"""A training's state in shards, one on each process, by torch's own means: its optimiser's alone
(ZeroRedundancyOptimizer, under DDP), or also weights and gradients (fully_shard, FSDP2).

Checkpoints hold whole tensors, as those of other trainings do: `gathered` makes these, tensor by tensor.
Loading cuts them: networks and optimisers that are in shards do so by themselves.

torch's parts are loaded where they are used: they take half a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from config.groups.jobs import FULLY_SHARDED, SHARDED_OPTIMISER
from distributed.world import World


def is_dtensor(value: Any) -> bool:
    """Whether it is a tensor that is in shards."""
    return hasattr(value, "full_tensor")


def is_sharded(module: nn.Module) -> bool:
    """Whether its weights are in shards: then each forward pass is one of all processes."""
    return any(map(is_dtensor, module.parameters()))


def own(tensor: Tensor) -> Tensor:
    """What this process has of it."""
    return cast(Any, tensor).to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process; all must call this."""
    return cast(Any, tensor).full_tensor() if is_dtensor(tensor) else tensor


def gathered(value: Any, is_main: bool) -> Any:
    """Nested dicts and lists, with each tensor that is in shards whole, on the CPU of the main process, and
    None elsewhere; all must call this.
    """
    if is_dtensor(value):
        full = whole(value)
        return full.cpu() if is_main else None
    if isinstance(value, dict):
        return {key: gathered(item, is_main) for key, item in value.items()}
    if isinstance(value, list):
        return [gathered(item, is_main) for item in value]
    return value


def _like(value: Any, mine: Any) -> Any:
    """This process's shard of a whole tensor, in the form that `mine` has."""
    if not is_dtensor(mine) or is_dtensor(value) or getattr(value, "shape", None) != mine.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(mine.device), mine.device_mesh, mine.placements, src_data_rank=None)


class ShardedObjective(nn.Module):
    """An objective whose network is put in shards, in place, and averages its gradients over the processes.

    A unit of the network is whole while it computes, forward or backward; what is in none, all through a
    step. Weights may come from the CPU: no more than a unit of them is whole on the device.
    """

    def __init__(self, objective: nn.Module, unused: Sequence[str], world: World) -> None:
        """unused: names of parameters of the network that a step may leave without a gradient."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        super().__init__()
        # keys and values are views, and nothing changes them in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        self.objective, self.world = objective, world
        self.unused, self.used = unused, set[str]()
        self.watched: dict[str, Tensor] = {}
        mesh = init_device_mesh(world.device.type, (world.size,))
        for unit in self.network.units:
            fully_shard(unit, mesh=mesh)
        fully_shard(self.network, mesh=mesh)
        register_fsdp_forward_method(self.network, "run")
        self.network.register_load_state_dict_pre_hook(_cut_weights)

    @property
    def network(self) -> Any:
        return self.objective.network

    def forward(self, batch: Any) -> Any:
        loss = self.objective(batch)
        for name in self.unused if torch.is_grad_enabled() else ():
            parameter = self.network.get_parameter(name)  # whole, after a pass
            if self.watched.get(name) is not parameter:
                self.watched[name] = parameter
                parameter.register_post_accumulate_grad_hook(partial(self._note_use, name))
            # processes average the gradients of the same parameters
            parameter.grad = torch.zeros_like(parameter)
        return loss

    def _note_use(self, name: str, parameter: Tensor) -> None:
        self.used.add(name)

    def with_gradient(self) -> list[nn.Parameter]:
        """As `with_gradient`: of parameters that no process has used, the gradient is taken away."""
        if self.unused:
            self._drop_unused()
        return [parameter for parameter in self.parameters() if parameter.grad is not None]

    def _drop_unused(self) -> None:
        used = self.world.sum(torch.tensor([name in self.used for name in self.unused], dtype=torch.int64))
        for name, count in zip(self.unused, used.tolist(), strict=True):
            if not count:
                self.network.get_parameter(name).grad = None
        self.used.clear()


def _cut_weights(network: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    for name, mine in network.named_parameters(remove_duplicate=False):
        if prefix + name in state:
            state[prefix + name] = _like(state[prefix + name], mine)


def with_gradient(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that a step has given a gradient; every process must call this."""
    if isinstance(model, ShardedObjective):
        return model.with_gradient()
    return [parameter for parameter in model.parameters() if parameter.grad is not None]


def make_adamw(groups: list[dict[str, Any]], shard: str | None, **settings: Any) -> Optimizer:
    """AdamW over groups of named parameters, for --shard (None: one process). With `optimizer`, each process
    keeps the state of some parameters, and takes their steps for all.
    """
    if shard != SHARDED_OPTIMISER:
        optimizer = AdamW(groups, **settings)
        if shard == FULLY_SHARDED:
            optimizer.register_load_state_dict_pre_hook(_cut_state)
        return optimizer
    from torch.distributed.optim import ZeroRedundancyOptimizer

    unnamed = []
    for group in groups:
        names, parameters = zip(*group["params"], strict=True)
        unnamed.append({**group, "params": list(parameters), "param_names": list(names)})
    return ZeroRedundancyOptimizer(unnamed, AdamW, **settings)


def _cut_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {}
    for number, values in state["state"].items():
        states[number] = {key: _like(value, parameters[number]) for key, value in values.items()}
    return {**state, "state": states}


def _local(optimizer: Any) -> Any:
    """The AdamW of this process's parameters, inside of one that is sharded."""
    return optimizer.optim if hasattr(optimizer, "consolidate_state_dict") else None


def state_of(optimizer: Optimizer, world: World) -> dict[str, Any]:
    """Its state, on the main process whole but for tensors in shards; every process must call this."""
    local = _local(optimizer)
    if local is None:
        return optimizer.state_dict()
    # torch's own way sends each process's whole state through all devices
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    mine = {number: local.state[p] for number, p in enumerate(parameters) if p in local.state}
    states = {}
    for source, numbers in enumerate(world.broadcast(world.gather(list(mine)))):
        for number in numbers if source == world.rank or world.is_main else ():
            values = {key: value.cpu() for key, value in mine.get(number, {}).items()}
            states[number] = world.to_main(values, source)
    return {**Optimizer.state_dict(optimizer), "state": dict(sorted(states.items()))}


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of a whole optimiser that has the same parameters, cut as this one is."""
    local = _local(optimizer)
    if local is None:
        optimizer.load_state_dict(state)
        return
    # torch's own way keeps moments twice, and step counts where the fused kernel of a GPU cannot read them
    numbers: dict[Any, int] = {}
    states, groups = {}, []
    for here, there in zip(optimizer.param_groups, state["param_groups"], strict=True):
        numbers.update(zip(here["params"], there["params"], strict=True))
    for here, there in zip(local.param_groups, state["param_groups"], strict=True):
        mine = [numbers[parameter] for parameter in here["params"]]
        states.update({number: state["state"][number] for number in mine if number in state["state"]})
        groups.append({**there, "params": mine})
    Optimizer.load_state_dict(optimizer, {"state": {}, "param_groups": state["param_groups"]})
    local.load_state_dict({"state": states, "param_groups": groups})
