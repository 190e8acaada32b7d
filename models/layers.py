"""The parts of the transformer that have parameters: blocks, depth embedding, routers, halting gate.

Legend: B batch, T positions, H heads, G heads of keys and values, D model width, Dh head width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import AttentionPlan, KeyValue, Rope, SelfAttention
from models.settings import ModelSettings


class MLP(nn.Module):
    """Four times as wide inside, or as --mlp_width says."""

    def __init__(self, settings: ModelSettings, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        width, inner, bias = settings.n_embd, settings.inner_width, settings.has_bias("mlp")
        self.c_fc = nn.Linear(width, inner, bias=bias)
        self.c_proj = nn.Linear(inner, width, bias=bias)
        self.dropout = nn.Dropout(settings.dropout)
        self.activation = activation
        self.recomputes = settings.attention == "fast"  # the reference stays as published

    def _narrow(self, inner: Tensor) -> Tensor:
        return self.c_proj(self.activation(inner))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.c_fc(x)
        # what the activation gives is the widest tensor of a block, and the cheapest to make again: `inner`
        # alone is kept for the gradients. A compiler decides by itself.
        if self.recomputes and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self.dropout(
                checkpoint(self._narrow, inner, use_reentrant=False, preserve_rng_state=False)
            )
        return self.dropout(self._narrow(inner))


@dataclass(frozen=True)
class LayerInputs:
    """What a layer of modern blocks (models/modern.py) takes in, beside the output of the layer before it.

    tokens (B, T) int64; embeddings (B, T, D): theirs, normed. residual, x0: scalars of this layer, for its
    input and for the embeddings. values (V, G Dh): its value embeddings, where it owns some.
    """

    tokens: Tensor
    embeddings: Tensor
    residual: Tensor
    x0: Tensor
    values: Tensor | None


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input (Xiong et al. 2020); what they are made of is said
    by its subclasses.
    """

    compiled: ClassVar[tuple[str, ...]] = ("project", "finish")  # methods that are worth it
    attn: Any
    mlp: MLP

    def enter(self, x: Tensor, inputs: LayerInputs | None) -> Tensor:
        """What attention and MLP are added to: the output of the layer before, x (B, T, D)."""
        return x

    def project(
        self, x: Tensor, key_states: Tensor | None, rope: Rope | None, inputs: LayerInputs | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What comes before attention: queries, keys and values, each (B, H, T, Dh)."""
        raise NotImplementedError

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """What comes after it, of the block's input x (B, T, D) and the attended values y (B, H, T, Dh)."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        key_states: Tensor | None,
        past: list[KeyValue],
        plan: AttentionPlan,
        inputs: LayerInputs | None,
    ) -> tuple[Tensor, KeyValue]:
        """x (B, T, D) -> output (B, T, D), and this pass's keys and values.

        key_states: what keys and values are made of, if not x itself. past: keys and values of earlier
        passes.
        """
        x = self.enter(x, inputs)
        q, k, v = self.project(x, key_states, plan.rope, inputs)
        return self.finish(x, self.attn.attend(q, [*past, (k, v)], plan)), (k, v)


class PublishedBlock(Block):
    """LayerNorm and GELU."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, norm_bias = settings.n_embd, settings.has_bias("norm")
        self.ln_1 = nn.LayerNorm(width, bias=norm_bias)
        self.attn = SelfAttention(
            width, settings.n_head, settings.has_bias("attn"), settings.dropout, settings.variant.split_qkv
        )
        self.ln_2 = nn.LayerNorm(width, bias=norm_bias)
        self.mlp = MLP(settings)

    def project(
        self, x: Tensor, key_states: Tensor | None, rope: Rope | None, inputs: LayerInputs | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As Block.project."""
        normed = self.ln_1(x)
        return self.attn.project(normed, None if key_states is None else self.ln_1(key_states), rope)

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """As Block.finish."""
        x = x + self.attn.output(y)
        return x + self.mlp(self.ln_2(x))


class DepthEmbedding(nn.Module):
    """Tells a pass how many are left (section 3.3): one vector times that number, or a row of a table."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.linear = settings.depth_embedding == "linear_learned"
        self.embs = nn.Embedding(1 if self.linear else settings.n_repeat, settings.n_embd)

    def forward(self, x: Tensor, passes_left: int) -> Tensor:
        if self.linear:
            return x + self.embs.weight[0] * passes_left
        return x + self.embs.weight[passes_left]


class Router(nn.Module):
    """Scores of tokens for taking another pass (section 4.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mod_router = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> logits (B, T); the score is their sigmoid."""
        return self.mod_router(x).squeeze(-1)


class HaltingGate(nn.Module):
    """Log-probabilities of going on and of halting, for stick breaking (Tan et al. 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._gate = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 2)."""
        return F.log_softmax(self._gate(x), dim=-1)
