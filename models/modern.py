"""Modern blocks: norms without weights, rotary positions and QK-norm, squared ReLU, value embeddings, and a
scalar each for a layer's input and for the embeddings (the GPT of karpathy/nanochat; names of parameters are
its own).

Legend: B batch, T positions, H heads of queries, G heads of keys and values, D model width, Dh head width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import AttentionPlan, KeyValue, Rope, attend
from models.layers import MLP, Block, LayerInputs
from models.settings import GATE_CHANNELS, ModelSettings

SOFTCAP = 15.0  # bound of logits


class _RmsNorm(torch.autograd.Function):
    """Keeps its output, which the next linear layer keeps anyway, and not its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        scale = (mean_square + torch.finfo(x.dtype).eps).rsqrt()
        normed = x * scale
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        normed, scale = ctx.saved_tensors
        share = grad * normed
        along = share.mean(-1, keepdim=True)
        return torch.mul(normed, along, out=share).neg_().add_(grad).mul_(scale)


def rms_norm(x: Tensor) -> Tensor:
    """x over the root of its mean square along the last axis, without weights; in float32 at least."""
    return cast(Tensor, _RmsNorm.apply(x if x.dtype == torch.float64 else x.float())).type_as(x)


class RMSNorm(nn.Module):
    """`rms_norm` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


def rotate_halves(x: Tensor, rope: Rope) -> Tensor:
    """Turn pairs of features of x (B, H, T, Dh), one of each half, back by the angles of their positions; in
    float32 at least.
    """
    cos, sin = rope
    first, second = (x if x.dtype == torch.float64 else x.float()).chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


class _SquaredRelu(torch.autograd.Function):
    """In one new tensor each way; keeps its input, which its caller keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.relu(x).square_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return F.relu(x).mul_(grad).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    return cast(Tensor, _SquaredRelu.apply(x))


class ModernAttention(nn.Module):
    """Attention whose queries and keys are normed after they are turned to their positions."""

    def __init__(self, settings: ModelSettings, has_values: bool) -> None:
        super().__init__()
        width, kv_width = settings.n_embd, settings.kv_heads * settings.head_width
        self.heads, self.kv_heads, self.query_scale = settings.n_head, settings.kv_heads, settings.query_scale
        self.c_q = nn.Linear(width, width, bias=False)
        self.c_k = nn.Linear(width, kv_width, bias=False)
        self.c_v = nn.Linear(width, kv_width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        if has_values:
            self.ve_gate = nn.Linear(GATE_CHANNELS, self.kv_heads, bias=False)

    def project(
        self, x: Tensor, key_states: Tensor, rope: Rope | None, inputs: LayerInputs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> queries (B, H, T, Dh), keys and values (B, G, T, Dh)."""
        assert rope is not None, "modern blocks have rotary positions"
        q = self.c_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.c_k(key_states).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.c_v(key_states).unflatten(-1, (self.kv_heads, -1))
        if inputs.values is not None:
            gate = 2 * self.ve_gate(key_states[..., :GATE_CHANNELS]).sigmoid()  # (B, T, G)
            v = v + gate.unsqueeze(-1) * F.embedding(inputs.tokens, inputs.values).view_as(v)
        q, k = [rms_norm(rotate_halves(side, rope)).type_as(side) for side in (q, k)]
        if self.query_scale != 1.0:
            q = q * self.query_scale
        return q, k, v.transpose(1, 2).type_as(k)

    def attend(self, q: Tensor, passes: list[KeyValue], plan: AttentionPlan) -> Tensor:
        """Queries (B, H, T, Dh) over the keys and values (B, G, T, Dh) of one or several passes."""
        shared = self.heads // self.kv_heads
        if shared > 1 and plan.blocks is None:  # which shares them by itself
            passes = [
                (k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)) for k, v in passes
            ]
        return attend(q, passes, plan, dropout=0.0)

    def output(self, y: Tensor) -> Tensor:
        """Heads (B, H, T, Dh) -> (B, T, D)."""
        return cast(Tensor, self.c_proj(y.transpose(1, 2).flatten(-2)))


class ModernBlock(Block):
    """The input is mixed with the embeddings first. Nothing has a bias."""

    compiled = ("enter", *Block.compiled)

    def __init__(self, settings: ModelSettings, has_values: bool) -> None:
        super().__init__()
        self.attn = ModernAttention(settings, has_values)
        self.mlp = MLP(settings, squared_relu)

    def enter(self, x: Tensor, inputs: LayerInputs | None) -> Tensor:
        """As Block.enter."""
        assert inputs is not None, "modern blocks take in embeddings"
        return inputs.residual * x + inputs.x0 * inputs.embeddings

    def project(
        self, x: Tensor, key_states: Tensor | None, rope: Rope | None, inputs: LayerInputs | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As Block.project."""
        assert inputs is not None, "modern blocks take in value embeddings"
        normed = rms_norm(x)
        normed_keys = normed if key_states is None else rms_norm(self.enter(key_states, inputs))
        return self.attn.project(normed, normed_keys, rope, inputs)

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """As Block.finish."""
        x = x + self.attn.output(y)
        return x + self.mlp(rms_norm(x))
