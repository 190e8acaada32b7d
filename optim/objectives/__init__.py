"""What training minimises: an objective holds the network, and what it needs of its own, and makes a loss
of a batch.

    loss = NextToken(network)(batch)         # under DDP it is the objective that is wrapped
    loss.mean.backward()

An objective is any module of this form: `network`, the part that a checkpoint keeps under the key "model";
`may_leave_unused`, whether a backward pass may skip parameters; and `forward(batch) -> Loss`. What else of it
is trained (further heads) is kept under the key "objective". It may have `frozen`, which is kept too: of each
part that is not trained, and comes from a file, its name and what optim.initial.describe says of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from data.batch import Batch
from errors import UserError
from models.losses import next_token
from models.network import Network


class Loss(NamedTuple):
    """mean: scalar, what is minimised. counted: of how many items (tokens, pairs, windows) it is the mean.

    A tuple, as DDP looks for tensors in what a module returns.
    """

    mean: Tensor
    counted: int


class NextToken(nn.Module):
    """Cross-entropy of the next token in nats, and what the network adds to it (depth penalties)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.may_leave_unused = network.may_leave_unused

    def forward(self, batch: Batch) -> Loss:
        hidden = self.network.run(batch["inputs"])
        return Loss(next_token(self.network, hidden, batch["targets"]).loss, batch.count)

    def flops_per_token(self) -> float:
        return self.network.flops_per_token()

    def describe(self) -> list[str]:
        """Lines of what it adds to its network, for the first lines of a run."""
        return []


def extras(objective: nn.Module) -> dict[str, nn.Parameter]:
    """What an objective trains beside its network, by name."""
    network: Any = objective.network
    of_network = {id(parameter) for parameter in network.parameters()}
    found = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and id(parameter) not in of_network:
            found[name] = parameter
    return found


def own_state(objective: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps under "objective": `extras`, and buffers outside the network, unless all of
    their part is frozen.
    """
    kept: dict[str, Tensor] = dict(extras(objective))
    for name, part in objective.named_children():
        is_frozen = all(not parameter.requires_grad for parameter in part.parameters())
        if name == "network" or (is_frozen and any(True for _ in part.parameters())):
            continue
        kept |= {f"{name}.{inner}": value for inner, value in _saved_buffers(part).items()}
    kept |= {name: value for name, value in _saved_buffers(objective).items() if "." not in name}
    return {name: value.detach() for name, value in kept.items()}


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict(keep_vars=True)
    return {name: value for name, value in saved.items() if not isinstance(value, nn.Parameter)}


def load_own_state(objective: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take up what a checkpoint has under "objective". Raises UserError naming what differs."""
    mine = own_state(objective)
    odd = sorted(mine.keys() ^ state.keys())
    if odd:
        raise UserError(f"the checkpoint is of another objective: {odd[0]} is only in one of the two")
    for name, value in mine.items():
        if value.shape != state[name].shape:
            there, here = tuple(state[name].shape), tuple(value.shape)
            raise UserError(f"the objective's {name} is {there} in the file, {here} in this run")
        value.copy_(state[name])


def same_frozen(mine: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """What a training keeps under "frozen" that goes on, with the files `mine`, from a checkpoint that has
    `kept`. Raises UserError where one holds something else.
    """
    for name, file in mine.items():
        begun = kept.get(name)
        if begun is not None and begun["sha256"] != file["sha256"]:
            raise UserError(
                f"the {name} {file['file']} is not what the training began with, {begun['file']}"
                f" ({begun['sha256'][:12]})"
            )
    return {**mine, **kept}
