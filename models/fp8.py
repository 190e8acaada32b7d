"""Linear layers that compute in FP8 in training, by torch's own scaled matrix product (torch._scaled_mm). In
evaluation mode they are the linear layers that they were, and a network that a checkpoint is loaded into has
never been converted.

    convert(network, "tensorwise")           # before it is compiled; weights and their names stay as they are

Each operand is quantised when it is needed: divided by a scale that puts its largest value at FP8's largest.
Nothing of this is kept between steps.

    recipe      scales                outputs      gradient of the input   gradient of the weight
    tensorwise  one for a tensor      e4m3 x e4m3  e5m2 x e4m3             e5m2 x e4m3
    rowwise     one for each row      e4m3 x e4m3  e4m3 x e4m3             bfloat16

A row is a token's, or an output feature's of the weight (an input feature's for the gradient of the input).

Legend: M tokens, K features in, N features out, V vocabulary, D model width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from models.adapters import LoraLinear

TENSORWISE, ROWWISE = "tensorwise", "rowwise"
OF_VALUES = torch.float8_e4m3fn  # 3 bits of mantissa, up to 448
OF_GRADIENTS = {TENSORWISE: torch.float8_e5m2, ROWWISE: torch.float8_e4m3fn}  # e5m2: 2 bits, up to 57344
MULTIPLE = 16  # of which the kernel wants the lengths of sums and rows of results
SMALLEST_SIDE = 128  # of a weight: below, quantising takes longer than the product saves
CAPABILITY = (8, 9)


class Operand(NamedTuple):
    """A side of a product, summed over its columns. values: (rows, columns) in FP8, true values over the
    scale: float32, of no dimensions or (rows, 1). scale None: values are bfloat16, and are the true ones.
    """

    values: Tensor
    scale: Tensor | None


def lacking(device: torch.device) -> str | None:
    """What a device lacks for products in FP8, in words; None: nothing."""
    if device.type != "cuda":
        return f"this run is on a {device.type.upper()}"
    if torch.version.hip is not None:
        return "this GPU is AMD's"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}"
    return None


def quantise(x: Tensor, dtype: torch.dtype, recipe: str) -> Operand:
    """x (rows, columns), with at least one of each. Infinities become NaN, so that they are not lost."""
    largest = torch.finfo(dtype).max
    if recipe == ROWWISE:
        peak = torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True)
    else:
        peak = torch.linalg.vector_norm(x, math.inf)
    # the smallest normal number keeps a quotient of zeros zero
    scale = (peak.float() / largest).clamp_min(torch.finfo(torch.float32).tiny)
    values = (x.float() / scale).clamp_(-largest, largest).to(dtype)
    return Operand(values.contiguous(), scale)


def _transposed(operand: Operand) -> Operand:
    """Of an operand with one scale."""
    return Operand(operand.values.t().contiguous(), operand.scale)


def _filled_up(values: Tensor) -> Tensor:
    """With columns of zeros, up to a multiple that the kernel takes."""
    missing = -values.shape[1] % MULTIPLE
    if not missing:
        return values
    return F.pad(values.view(torch.uint8), (0, missing)).view(values.dtype)


def product(a: Operand, b: Operand, fast: bool = False) -> Tensor:
    """a (rows, columns) times the transpose of b (other rows, columns), in bfloat16.

    fast: sums are kept in less than float32 on the way, which is exact enough for outputs.
    """
    assert a.scale is not None, "in FP8"
    assert b.scale is not None, "in FP8"
    return torch._scaled_mm(
        _filled_up(a.values),
        _filled_up(b.values).t(),
        scale_a=a.scale,
        scale_b=b.scale if b.scale.dim() == 0 else b.scale.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )


def _kept(x: Tensor, x8: Operand, recipe: str) -> Operand:
    """What of a layer's input x (M, K) its weight's gradient is made of."""
    return x8 if recipe == TENSORWISE else Operand(x.to(torch.bfloat16), None)


def _gradients(
    grad: Tensor, x: Operand, weight_t: Operand, recipe: str, of_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Of a layer's input (M, K) and, where it is wanted, weight (N, K), by those of its output (M, N). x: as
    `_kept` gives it; weight_t (K, N).
    """
    grad8 = quantise(grad, OF_GRADIENTS[recipe], recipe)
    of_input = product(grad8, weight_t)
    if not of_weight:
        return of_input, None
    if x.scale is None:
        return of_input, grad.to(torch.bfloat16).t() @ x.values
    return of_input, product(_transposed(grad8), _transposed(x))


class _Linear(torch.autograd.Function):
    """x (M, K), weight (N, K) -> (M, N) in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, recipe: str) -> Tensor:
        x8 = quantise(x, OF_VALUES, recipe)
        kept = _kept(x, x8, recipe) if ctx.needs_input_grad[1] else (None, None)
        ctx.save_for_backward(*kept, weight)
        ctx.recipe, ctx.dtype = recipe, x.dtype
        return product(x8, quantise(weight, OF_VALUES, recipe), fast=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, weight = ctx.saved_tensors
        weight_t = quantise(weight.t(), OF_VALUES, ctx.recipe)
        wanted = ctx.needs_input_grad[1]
        of_input, of_weight = _gradients(grad, Operand(values, scale), weight_t, ctx.recipe, wanted)
        return of_input.to(ctx.dtype), None if of_weight is None else of_weight.to(weight.dtype), None


class Float8Linear(nn.Linear):
    """A linear layer that `convert` has made of another."""

    recipe: str

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not x.numel():
            return super().forward(x)
        y = cast(Tensor, _Linear.apply(x.flatten(0, -2), self.weight, self.recipe))
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Float8Lora(LoraLinear, Float8Linear):
    """One with an adapter, whose own products are in the dtype of autocast."""


class HeadProducts:
    """The products of slices of hidden states (n, D) and an output weight (rows, D), whose first rows are
    tokens; as models.loss.Products.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, recipe: str, softcap: float | None, vocabulary: int
    ) -> None:
        self.recipe, self.softcap, self.vocabulary = recipe, softcap, vocabulary
        self.padding = weight.shape[0] - vocabulary
        self.x8 = quantise(hidden, OF_VALUES, recipe)
        self.kept = _kept(hidden, self.x8, recipe)
        self.weight = quantise(weight, OF_VALUES, recipe)
        self.weight_t = quantise(weight.t(), OF_VALUES, recipe)

    def logits(self, part: slice) -> Tensor:
        logits = product(_rows(self.x8, part), self.weight, fast=True)[:, : self.vocabulary].float()
        return logits if self.softcap is None else logits.div_(self.softcap)

    def backward(self, part: slice, grad: Tensor, grad_weight: Tensor | None) -> Tensor:
        if self.padding:
            grad = F.pad(grad, (0, self.padding))
        wanted = grad_weight is not None
        of_input, of_weight = _gradients(grad, _rows(self.kept, part), self.weight_t, self.recipe, wanted)
        if grad_weight is None or of_weight is None:
            return of_input
        if part.start == 0:
            grad_weight.copy_(of_weight)
        else:
            grad_weight += of_weight
        return of_input


def _rows(operand: Operand, part: slice) -> Operand:
    values, scale = operand
    return Operand(values[part], scale if scale is None or scale.dim() == 0 else scale[part])


def qualifies(layer: nn.Linear) -> bool:
    """Whether FP8 is for a layer: its sides are what the kernel takes, and long enough to gain by it."""
    sides = layer.weight.shape
    return min(sides) >= SMALLEST_SIDE and all(side % MULTIPLE == 0 for side in sides)


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """All of a network, by their names."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}


def convert(network: Any, recipe: str) -> None:
    """Have the linear layers of a network that qualify compute in FP8 in training, the head's in the loss.

    Raises UserError where there is none.
    """
    converted = [layer for layer in linear_layers(network).values() if qualifies(layer)]
    if not converted:
        raise UserError(
            f"--fp8: none of this network's linear layers has sides that are multiples of {MULTIPLE}, the"
            f" smaller of {SMALLEST_SIDE} or more; leave --fp8 out, or give a larger --n_embd"
        )
    _, head = network.head
    for layer in converted:
        layer.__class__ = Float8Lora if isinstance(layer, LoraLinear) else Float8Linear
        cast(Float8Linear, layer).recipe = recipe
        if layer.weight is head:
            network.head_recipe = recipe


def head_recipe(network: Any) -> str | None:
    """By which a loss takes the products with a network's head in FP8 at present; None: it does not."""
    recipe: str | None = getattr(network, "head_recipe", None)
    return recipe if network.training else None


def in_words(network: nn.Module, recipe: str) -> str:
    """How many linear layers compute in FP8, for the first lines of a run."""
    layers = linear_layers(network).values()
    converted = sum(isinstance(layer, Float8Linear) for layer in layers)
    kept = len(layers) - converted
    return f"FP8, {recipe}: {converted} linear layers, {kept} kept in bfloat16, as all are in evaluations"
