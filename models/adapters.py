"""Low-rank adapters (LoRA) of a network that is trained already: the matrices of its blocks stay as they are,
and a product of two small ones is trained beside each.

    add_lora(network, Block, Lora(rank=8, alpha=8))     # all else takes no gradient any more
    plain_weights(state["model"], state["args"])        # of a checkpoint: they are part of its matrices now

Legend: K features in, N features out, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from config.adaptation import Lora, lora_of
from errors import UserError
from models.network import ADAPTER, MATRIX

NARROW, WIDE = ".lora_a", ".lora_b"  # at the end of the names of an adapter's two matrices
GATES = "ve_gate"  # of attention, with a row for each head: these are too small


class LoraLinear(nn.Linear):
    """A linear layer that `add_lora` has made of another: W x + scale B (A x).

    lora_a (R, K) begins as nn.Linear does, lora_b (N, R) as zeros: the layer begins as it was.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        # added in place: one tensor of the output's size fewer
        return super().forward(x).add_(F.linear(F.linear(x, self.lora_a) * self.scale, self.lora_b))


def add_lora(network: nn.Module, kind: type[nn.Module], lora: Lora) -> None:
    """Freeze a network, and give the matrices of its modules of a kind adapters.

    Raises UserError for a rank that is not below the sides of all of these.
    """
    network.requires_grad_(False)
    for block in [module for module in network.modules() if isinstance(module, kind)]:
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear) and not name.endswith(GATES):
                if lora.rank >= min(layer.weight.shape):
                    raise UserError(
                        f"--adapt lora:{lora.rank}: the rank must be below {min(layer.weight.shape)}, the"
                        f" shorter side of {name} in each layer"
                    )
                _adapt(layer, lora)


def _adapt(layer: nn.Linear, lora: Lora) -> None:
    rows, columns = layer.weight.shape
    layer.__class__ = LoraLinear
    adapted = cast(LoraLinear, layer)
    adapted.lora_a = nn.Parameter(layer.weight.new_empty(lora.rank, columns))
    adapted.lora_b = nn.Parameter(layer.weight.new_zeros(rows, lora.rank))
    adapted.scale = lora.scale
    bound = 1 / math.sqrt(columns)
    nn.init.uniform_(adapted.lora_a, -bound, bound)


def is_adapters(name: str) -> bool:
    """Whether a parameter of this name is of an adapter."""
    return name.endswith((NARROW, WIDE))


def adapter_roles(network: nn.Module, with_mup: bool = False) -> dict[str, str]:
    """The role of each adapter's matrices, by their names. With muP, those that sum over the width are as
    other matrices are.
    """
    roles = {name: ADAPTER for name, _ in network.named_parameters() if is_adapters(name)}
    if with_mup:
        roles |= {name: MATRIX for name in roles if name.endswith(NARROW)}
    return roles


def merged(weights: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """The weights of the network without adapters that computes the same; others stay as they are.

    Raises UserError where a matrix of an adapter is missing, or is of other sides.
    """
    plain = {name: value for name, value in weights.items() if not is_adapters(name)}
    for name in weights:
        if not is_adapters(name):
            continue
        layer = name.rpartition(".")[0]
        try:
            weight, narrow, wide = [weights[layer + end] for end in (".weight", NARROW, WIDE)]
            change = lora.scale * (wide.double() @ narrow.double())
            plain[layer + ".weight"] = (weight + change).to(weight.dtype)
        except (KeyError, RuntimeError, AttributeError, TypeError):
            raise UserError(f"the adapter of {layer} is incomplete, or of another layer") from None
    return plain


def plain_weights(weights: Mapping[str, Any], args: Any) -> Mapping[str, Any]:
    """The weights of a checkpoint with its adapters merged, where it has some. args: flags of its training,
    as far as they are known. Raises UserError.
    """
    if not any(map(is_adapters, weights)):
        return weights
    try:
        lora = lora_of(args["adapt"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("it has adapters, and no setting --adapt that says by what they are scaled") from None
    return merged(weights, lora)


def trained_parameters(network: nn.Module) -> int:
    """How many numbers take a gradient."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
