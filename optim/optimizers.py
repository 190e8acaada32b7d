"""Optimisers over two groups of parameters: Linear weights, which decay, and everything else, which does
not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer

from errors import UserError


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Named parameters in two groups, each sorted by name as the authors have them.

    The tied output weight is listed under the embedding and does not decay.
    """
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decaying = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - tied
    named = sorted(model.named_parameters())
    decay = [(name, p) for name, p in named if id(p) in decaying]
    rest = [(name, p) for name, p in named if id(p) not in decaying]
    assert len(decay) + len(rest) == len(named), "every parameter lands in exactly one group"
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, args: Any) -> Optimizer:
    """AdamW (one fused kernel where the device has it), SGD or Adafactor, by --opt; rates are set by the
    schedule.
    """
    groups, decay = parameter_groups(model), args.weight_decay
    if args.opt == "adamw":
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        return AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), weight_decay=decay, fused=fused)
    if args.opt == "sgd":
        return SGD(groups, lr=args.lr, momentum=args.beta1, weight_decay=decay)
    return Adafactor(groups, lr=args.lr, weight_decay=decay)


def state_shape(key: str, parameter: torch.Tensor) -> torch.Size:
    """Shape of an optimiser's state tensor: that of the parameter, but for step counts and Adafactor's
    factors.
    """
    shape = parameter.shape
    if key == "row_var":
        return torch.Size([*shape[:-1], 1])
    if key == "col_var":
        return torch.Size([*shape[:-2], 1, shape[-1]])
    return torch.Size([]) if key == "step" else shape


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load strictly: same groups, same parameters by name, same shapes.

    Raises UserError naming what differs.
    """
    mine = optimizer.state_dict()
    if len(mine["param_groups"]) != len(state["param_groups"]):
        raise UserError(
            f"optimiser: the file has {len(state['param_groups'])} parameter groups, this run has"
            f" {len(mine['param_groups'])}"
        )
    for here, there in zip(optimizer.param_groups, state["param_groups"], strict=True):
        if here["param_names"] != there.get("param_names"):
            odd = sorted(set(here["param_names"]) ^ set(there.get("param_names") or ()))
            raise UserError(
                f"optimiser: parameters differ between the file and this run: {', '.join(odd[:5]) or 'order'}"
            )
        missing = sorted((set(here) ^ set(there)) - {"params"})
        if missing:
            raise UserError(
                f"optimiser: the file is of another optimiser (settings {', '.join(missing[:5])})"
            )
        for name, parameter, number in zip(here["param_names"], here["params"], there["params"], strict=True):
            for key, value in state["state"].get(number, {}).items():
                expected = state_shape(key, parameter)
                if isinstance(value, torch.Tensor) and value.shape != expected:
                    raise UserError(
                        f"optimiser: {key} of {name} is {tuple(value.shape)} in the file, {tuple(expected)}"
                        " in this run"
                    )
    optimizer.load_state_dict(state)
