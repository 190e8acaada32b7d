"""Optimisers over groups of parameters. Rules say how a parameter decays and at which rate, by its role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adafactor, Optimizer

from config.checks import OF_MUP
from config.groups.optimiser import OPTIMIZERS
from distributed.shard import load_state, make_adamw
from distributed.world import World
from errors import UserError
from models.network import (
    ADAPTER,
    EMBEDDING,
    FROZEN,
    GATE,
    HEAD,
    MATRIX,
    NORM,
    RESIDUAL_SCALAR,
    ROUTER,
    SCALAR,
    TUNED,
    TUNED_VECTOR,
    VALUE_EMBEDDING,
    X0_SCALAR,
    roles_of,
)
from optim.lion import Lion
from optim.muon import ADAMW, MUON, Muon, second_moment_shape
from optim.setup import autocast_dtype

OF_OBJECTIVE = "objective."  # before the names of parameters that an objective has of its own


@dataclass(frozen=True)
class ParameterRule:
    """One group of an optimiser: the parameters of some roles.

    decay: weight decay; None: the optimiser's own. rate: multiple of the schedule's learning rate. settings:
    others of the group.
    """

    roles: frozenset[str]
    decay: float | None = None
    rate: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


EMBEDDINGS = frozenset((EMBEDDING, VALUE_EMBEDDING))
SCALARS = frozenset((NORM, SCALAR, RESIDUAL_SCALAR, X0_SCALAR))
# weights that multiply decay, and all of an adapter; a tied output weight is an embedding, and does not
MULTIPLIERS = frozenset((MATRIX, ROUTER, HEAD, ADAPTER))
PUBLISHED = (ParameterRule(MULTIPLIERS), ParameterRule(EMBEDDINGS | SCALARS, decay=0.0))
RULES = {
    "matrices": PUBLISHED,
    "matrices_embeddings": (ParameterRule(MULTIPLIERS | EMBEDDINGS), ParameterRule(SCALARS, decay=0.0)),
    "all": (ParameterRule(MULTIPLIERS | EMBEDDINGS | SCALARS),),
}
# rates relative to that of all other scalars: the public code's, as are the first betas of x0 scalars
RESIDUAL_RATE, X0_BETA1, X0_BETA2 = 0.01, 0.96, 0.95


def muon_rules(args: Any, fused: bool) -> tuple[ParameterRule, ...]:
    """Muon for the matrices, those of adapters too, AdamW for all others, each kind at a rate of its own
    (None: --lr).

    A router goes with the output head: both turn states into scores. Muon would make of its one row a step of
    constant length, however small the gradient; a gate of value embeddings, which has a row for each head, is
    a matrix.
    """
    shared = {**ADAMW, "fused": fused}
    adamw = {**shared, "betas": (args.beta1, args.beta2)}
    of_x0 = {**shared, "betas": (X0_BETA1, X0_BETA2)}

    def relative(rate: float | None) -> float:
        return 1.0 if rate is None else rate / args.lr

    scalars = relative(args.scalar_lr)
    width_scale = getattr(args, "width_scale", 1.0)  # which some recipes have
    heads, tables = width_scale * relative(args.unembedding_lr), width_scale * relative(args.embedding_lr)
    return (
        ParameterRule(frozenset((MATRIX, ADAPTER)), settings=MUON),
        ParameterRule(frozenset((HEAD, ROUTER)), 0.0, heads, adamw),
        ParameterRule(EMBEDDINGS, 0.0, tables, adamw),
        ParameterRule(frozenset((NORM, SCALAR)), 0.0, scalars, adamw),
        ParameterRule(frozenset((RESIDUAL_SCALAR,)), 0.0, scalars * RESIDUAL_RATE, adamw),
        ParameterRule(frozenset((X0_SCALAR,)), 0.0, scalars, of_x0),
    )


def mup_rules(multiple: float, decay: float, decayed: str) -> tuple[ParameterRule, ...]:
    """Of muP (Yang et al. 2022, Tensor Programs V, table 8, for Adam), at a width that is a multiple of that
    which --lr was chosen for: the rate of weights that sum over the width falls with it.

    Their decay rises as much, so that a step takes the same share of a weight at every width. The first group
    is at --lr itself, which rows of metrics report.
    """
    hidden = ParameterRule(frozenset((MATRIX, ROUTER)), decay * multiple, 1 / multiple)
    others, multipliers = EMBEDDINGS | SCALARS, frozenset((HEAD, GATE, ADAPTER))
    if decayed == "all":
        return ParameterRule(multipliers | others), hidden
    return ParameterRule(multipliers), ParameterRule(others, decay=0.0), hidden


def tuned_rules(rate: float) -> tuple[ParameterRule, ...]:
    """Of what is trained below an adapter. rate: multiple of --lr."""
    return (
        ParameterRule(frozenset((TUNED,)), rate=rate),
        ParameterRule(frozenset((TUNED_VECTOR,)), decay=0.0, rate=rate),
    )


def parameter_groups(
    model: nn.Module,
    extras: Mapping[str, nn.Parameter] = MappingProxyType({}),
    rules: Sequence[ParameterRule] = PUBLISHED,
) -> list[dict[str, Any]]:
    """A group for each rule that has parameters: named, and sorted by name as the authors have them.

    extras: trained beside the model, by their names, which OF_OBJECTIVE precedes here. Frozen ones are left
    out. Raises UserError for a parameter without a role that a rule has.
    """
    roles, named = roles_of(model), dict(model.named_parameters())
    for name, parameter in extras.items():
        named[OF_OBJECTIVE + name] = parameter
        roles[OF_OBJECTIVE + name] = MATRIX if parameter.dim() > 1 else SCALAR
    known = {FROZEN}.union(*(rule.roles for rule in rules))
    odd = [name for name in named if roles.get(name) not in known]
    if odd:
        raise UserError(
            f"the network's roles() must give each parameter one of {', '.join(sorted(known))}, which"
            f" {odd[0]} has not"
        )
    groups: list[dict[str, Any]] = []
    for rule in rules:
        chosen = [(name, named[name]) for name in sorted(named) if roles[name] in rule.roles]
        group: dict[str, Any] = {"params": chosen, **rule.settings}
        if rule.decay is not None:
            group["weight_decay"] = rule.decay
        if rule.rate != 1.0:
            group["rate"] = rule.rate
        groups.append(group)
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module,
    args: Any,
    extras: Mapping[str, nn.Parameter] = MappingProxyType({}),
    world: World | None = None,
) -> Optimizer:
    """AdamW (one fused kernel where the device has it), SGD, Adafactor, Muon or Lion, by --opt; rates are set
    by the schedule. world: the processes that share the work of Muon.

    Raises ValueError for an optimiser that does not exist.
    """
    if args.opt not in OPTIMIZERS:
        raise ValueError(f"unknown optimiser {args.opt!r}; there are: {', '.join(OPTIMIZERS)}")
    optimizer = _optimizer(model, args, extras, world)
    if args.decay_schedule == "linear":
        for group in optimizer.param_groups:
            group["full_decay"] = group["weight_decay"]  # of which the schedule takes a share
    return optimizer


def _optimizer(
    model: nn.Module, args: Any, extras: Mapping[str, nn.Parameter], world: World | None
) -> Optimizer:
    device = next(model.parameters()).device
    decay = args.weight_decay * getattr(args, "decay_scale", 1.0)  # which some recipes have
    fused, multiple = device.type in ("cpu", "cuda"), getattr(model, "width_multiple", None)
    if multiple is not None and args.opt not in OF_MUP:
        raise UserError(f"a network of muP trains with --opt {' or '.join(OF_MUP)}, not with {args.opt}")
    if args.opt == "muon":
        groups = parameter_groups(model, extras, muon_rules(args, fused))
        dtype = autocast_dtype(args.muon_dtype, device)
        return Muon(groups, lr=args.lr, weight_decay=decay, dtype=dtype, world=world)
    decayed = getattr(args, "decayed", "matrices")  # older checkpoints do not have the flag
    rules = RULES[decayed] if multiple is None else mup_rules(multiple, decay, decayed)
    rules = (*rules, *tuned_rules(getattr(args, "backbone_rate", 1.0)))  # which some recipes have
    groups = parameter_groups(model, extras, rules)
    if args.opt == "adamw":
        betas = args.beta1, args.beta2
        many = world is not None and world.size > 1
        how = getattr(args, "shard", None) if many else None
        return make_adamw(groups, how, lr=args.lr, betas=betas, weight_decay=decay, fused=fused)
    if args.opt == "lion":
        return Lion(groups, lr=args.lr, betas=(args.beta1, args.beta2), weight_decay=decay)
    if args.opt == "sgd":
        return SGD(groups, lr=args.lr, momentum=args.beta1, weight_decay=decay)
    # eps as torch has it, then the least size of a parameter that its step is relative to
    return Adafactor(groups, lr=args.lr, eps=(args.adafactor_eps, 1e-3), weight_decay=decay)


def state_shape(key: str, parameter: torch.Tensor) -> torch.Size:
    """Shape of an optimiser's state tensor: that of the parameter, but for step counts, Adafactor's factors
    and Muon's second moment.
    """
    shape = parameter.shape
    if key == "row_var":
        return torch.Size([*shape[:-1], 1])
    if key == "col_var":
        return torch.Size([*shape[:-2], 1, shape[-1]])
    if key == "second_moment":
        return second_moment_shape(shape)
    return torch.Size([]) if key == "step" else shape


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load strictly: same groups, same parameters by name, same shapes.

    Raises UserError naming what differs.
    """
    if len(optimizer.param_groups) != len(state["param_groups"]):
        raise UserError(
            f"optimiser: the file has {len(state['param_groups'])} parameter groups, this run has"
            f" {len(optimizer.param_groups)}"
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
    load_state(optimizer, state)
