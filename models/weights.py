"""Loading weights: strict, but for the names in which the authors' checkpoints may differ from ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from errors import UserError
from models.settings import ModelSettings

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # put before every name by DDP and torch.compile


def may_differ(name: str, settings: object) -> bool:
    """Names that a file may have or lack, of a text network's: causal masks, angles (both recomputed), the
    router after the last pass, which nothing reads, and pondernet's halting gate, which it does not use.
    """
    return isinstance(settings, ModelSettings) and (
        name.endswith(".attn.bias")
        or name == "transformer.wpe.freqs"
        or name == f"transformer.mod.{settings.n_repeat - 1}.mod_router.weight"
        or (settings.variant.exits_each_pass and name.startswith("depth_predictor."))
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict. Raises UserError naming the field, and both shapes where they differ."""
    mine = model.state_dict()
    state = {WRAPPERS.sub("", name): value for name, value in state.items()}
    for name, value in state.items():
        if (
            not isinstance(value, Tensor)
            or value.layout != torch.strided
            or value.is_meta
            or value.is_complex()
        ):
            raise UserError(f"{name} is no tensor of stored real numbers in the file")
        if name in mine and mine[name].shape != value.shape:
            raise UserError(
                f"{name} is {tuple(value.shape)} in the file, {tuple(mine[name].shape)} in this model"
            )
    settings = getattr(model, "settings", None)  # a network of the user's own has none
    odd = sorted(name for name in mine.keys() ^ state.keys() if not may_differ(name, settings))
    if odd:
        verb = "lacks" if odd[0] in mine else "has the unknown"
        raise UserError(
            f"the file is of another model: it {verb} {odd[0]}"
            + (f"; {len(odd) - 1} more names differ" if len(odd) > 1 else "")
        )
    model.load_state_dict({name: value for name, value in state.items() if name in mine}, strict=False)
