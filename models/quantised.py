"""Weight-only formats for generation on CPUs: a new token reads every weight, and in int8 a quarter of the
bytes.

Converted are the linear layers of blocks and the head. Embeddings, norms, routers, gates that halt and what
is kept of keys and values stay in float32.

Legend: K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.adapters import LoraLinear
from models.layers import Block

AS_THEY_ARE = "float32"
KINDS = (AS_THEY_ARE, "bfloat16", "int8")
LANES = 32  # the kernel of int8 may crash on matrices whose inputs are no multiple of it
FEW_ROWS = 8  # up to here it is faster than a product with the weights in bfloat16
LARGEST = 127
# with AMX a single row of bfloat16 is faster as torch.mv, without it as F.linear (bench/README.md)
SINGLE_ROW_BY_MV = torch.cpu._is_amx_tile_supported()


def _weight(layer: nn.Linear) -> Tensor:
    """(N, K), an adapter merged."""
    weight = layer.weight.detach()
    if isinstance(layer, LoraLinear):
        weight = weight + layer.scale * (layer.lora_b.detach() @ layer.lora_a.detach())
    return weight


class BFloat16Linear(nn.Module):
    """A linear layer whose weights are stored in bfloat16, and its inputs rounded to it."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight (N, K), bias (N,)."""
        super().__init__()
        self.register_buffer("weight", weight.bfloat16().contiguous(), persistent=False)
        self.bias = bias

    def _product(self, rows: Tensor) -> Tensor:
        """(rows, K) -> (rows, N), both bfloat16."""
        if len(rows) == 1 and SINGLE_ROW_BY_MV:
            return torch.mv(self.weight, rows[0]).unsqueeze(0)
        return F.linear(rows, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), in the dtype of x."""
        y = self._product(x.reshape(-1, x.shape[-1]).bfloat16()).to(x.dtype)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)


class Int8Linear(BFloat16Linear):
    """One whose weights are integers from -127 to 127, with a scale for each output."""

    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        largest = weight.abs().amax(1, keepdim=True)
        # rounded before the weights are: it adds no error of its own
        scale = (largest.clamp(min=torch.finfo(torch.float32).tiny) / LARGEST).bfloat16()
        whole = (weight / scale.float()).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
        self.register_buffer("weight", whole.contiguous(), persistent=False)
        self.register_buffer("scale", scale.squeeze(1), persistent=False)
        self.bias = bias

    def _product(self, rows: Tensor) -> Tensor:
        if len(rows) <= FEW_ROWS and rows.shape[1] % LANES == 0:
            return torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale)
        return F.linear(rows, self.weight.bfloat16()) * self.scale


def _refusal(network: Any, kind: str) -> str | None:
    """Why a network cannot read its weights in a format, or None."""
    weight = network.embedding.weight
    if kind not in KINDS:
        return f"weights can be read in {', '.join(KINDS)}, not in {kind!r}"
    if network.quantised_head is not None:
        return "the weights are rounded already: load the model again"
    if kind == AS_THEY_ARE:
        return None
    if weight.device.type != "cpu":
        return f"weights in {kind} are for CPUs, and this model is on {weight.device.type}"
    if weight.dtype != torch.float32:
        return f"weights in {kind} are made of float32, and these are {weight.dtype}"
    return "rounded weights are for inference alone: call eval() first" if network.training else None


def quantise(network: Any, kind: str) -> None:
    """Have a Transformer read its weights in another format from now on, for inference alone.

    kind: one of KINDS. Raises ValueError for others, for devices that are no CPU, in training mode, and for
    weights that are not in float32.
    """
    refusal = _refusal(network, kind)
    if refusal is not None:
        raise ValueError(refusal)
    if kind == AS_THEY_ARE:
        return
    layer_of = {"bfloat16": BFloat16Linear, "int8": Int8Linear}[kind]
    for block in [module for module in network.modules() if isinstance(module, Block)]:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear) and not name.endswith("ve_gate"):
                bias = None if layer.bias is None else layer.bias.detach()
                block.set_submodule(name, layer_of(_weight(layer), bias))
    weight = cast(Tensor, network.head[1]).detach()
    network.quantised_head = layer_of(weight[: network.vocabulary], None)
