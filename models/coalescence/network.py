"""The network of coalescence times: a decoder whose first positions are the windows of a sequence, which see
one another; after them come the tokens of the times so far, which see all windows and what is before them.

    network = CoalescenceTransformer(PRESETS["tiny"].settings())
    hidden = network.run(x, tokens)                 # x (B, 2, 4, W, N), tokens (B, T) int64, the first is 1
    network.logits(hidden.states)                   # (B, T, V): of the tokens that follow

Legend: B batch, C channels, S scales, W windows, N bins, T tokens, D model width, H heads, Dh head width, V
vocabulary.

Parameters and how they start
  Linear, Embedding    N(0, 0.02)
  c_proj.weight        N(0, 0.02 / sqrt(2 n_layer))
  norms 1, biases 0    the adapter: models/coalescence/adapter.py
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint

from errors import UserError
from models.attention import KeyValue, Rope, Rotary
from models.coalescence.adapter import Adapter
from models.coalescence.settings import CHANNELS, LN_LAST_N, SCALES, CoalescenceSettings
from models.hidden import Hidden
from models.layers import PublishedBlock
from models.network import ADAPTER, FROZEN, TUNED, TUNED_VECTOR, by_layer_type

CHANNEL_WEIGHTS = (0.7, 0.3)
ROPE_BASE = 10000.0
MASK_TOKEN = "mask_token"  # name of the parameter
OF_NORMS = ("ln", "norm")  # in the names of parameters that are trained with an adapter


class WindowEncoder(nn.Module):
    """The histograms of a window -> its state: each by itself, the channels weighed, the scales joined."""

    weights: Tensor

    def __init__(self, settings: CoalescenceSettings) -> None:
        super().__init__()
        inner = settings.expansion * settings.n_samples
        self.proj01 = nn.Linear(settings.n_samples, inner)
        self.proj02 = nn.Linear(inner, inner)
        self.dropout = nn.Dropout(settings.dropout)
        self.register_buffer("weights", torch.tensor(CHANNEL_WEIGHTS).view(1, CHANNELS, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, W, N) -> (B, W, D)."""
        x = self.dropout(self.proj02(F.gelu(self.proj01(x))))
        of_scales = (x * self.weights).sum(dim=1)  # (B, S, W, D / S)
        return of_scales.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, source: int) -> Tensor:
    """q (B, H, source + T, Dh) over keys and values of the same positions: those of the first `source` see
    one another, the others all of these and, of their own, what is not after them.
    """
    of_source = F.scaled_dot_product_attention(q[:, :, :source], k[:, :, :source], v[:, :, :source])
    tokens = q.shape[2] - source
    if not tokens:
        return of_source
    mask: Any
    if q.device.type == "cuda":  # whose kernels need no mask
        mask = causal_lower_right(tokens, q.shape[2])
    else:
        seen = torch.ones(tokens, q.shape[2], dtype=torch.bool, device=q.device).tril(source)
        mask = torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
    of_tokens = F.scaled_dot_product_attention(q[:, :, source:], k, v, attn_mask=mask)
    return torch.cat((of_source, of_tokens), dim=2)


def _through_block(
    block: PublishedBlock, x: Tensor, rope: Rope, source: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, source + T, D) -> output (B, source + T, D), keys and values."""
    q, k, v = block.project(x, None, rope, None)
    return block.finish(x, attend(q, k, v, source)), k, v


class CoalescenceTransformer(nn.Module):
    """State-dict names are the public code's, but for the adapter's, which has them beside the network's own
    here (optim/coalescence/load.py).
    """

    may_leave_unused = False
    resumes_adapter = False  # a file of weights that it begins with must hold an adapter

    def __init__(self, settings: CoalescenceSettings) -> None:
        super().__init__()
        self.settings = settings
        of_blocks, width = settings.of_blocks, settings.n_embd
        self.transformer = nn.ModuleDict(
            {
                "bt2ls": WindowEncoder(settings),
                "ote": nn.Embedding(settings.vocab_size, width),
                "drop": nn.Dropout(settings.dropout),
                "h": nn.ModuleList(PublishedBlock(of_blocks) for _ in range(settings.n_layer)),
                "ln_f": nn.LayerNorm(width, bias=False),
            }
        )
        self.lm_head = nn.Linear(width, settings.vocab_size, bias=False)
        self.rotary = Rotary(settings.head_width, ROPE_BASE, persistent=False)
        self._initialise()
        self.adapter: Adapter | None = None
        self.mask_token: nn.Parameter | None = None
        if settings.adapter is not None:
            self.adapter = Adapter(settings.adapter, settings.n_samples)
            if settings.mask_singletons:
                self.mask_token = nn.Parameter(torch.zeros(()))
            if self._keeps_backbone:
                self._freeze(settings.adapter.last_n)

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                std = 0.02 / math.sqrt(2 * self.settings.n_layer) if name.endswith("c_proj") else 0.02
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _backbone(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Parameters that are not the adapter's, by name."""
        for name, parameter in self.named_parameters():
            if name.startswith(("transformer.", "lm_head.")):
                yield name, parameter

    @property
    def _keeps_backbone(self) -> bool:
        """Whether most of it stays as it is, below an adapter."""
        adapter = self.settings.adapter
        return adapter is not None and adapter.unfrozen == LN_LAST_N

    def _freeze(self, last_n: int) -> None:
        """All of the backbone but its norms and its last blocks."""
        blocks = self.blocks
        last = {id(p) for block in blocks[len(blocks) - last_n :] for p in block.parameters()}
        for name, parameter in self._backbone():
            is_norm = any(part in name.lower() for part in OF_NORMS)
            parameter.requires_grad_(is_norm or id(parameter) in last)

    def train(self, mode: bool = True) -> CoalescenceTransformer:
        """As nn.Module; a network that an adapter keeps goes without dropout."""
        super().train(mode)
        if self._keeps_backbone:
            self.transformer.eval()
        return self

    @property
    def blocks(self) -> list[PublishedBlock]:
        return list(cast(Iterable[PublishedBlock], self.transformer["h"]))

    def rope(self, first: int, count: int, device: torch.device) -> Rope:
        """Angles of positions first .. first + count - 1: windows come first, the first token is at W."""
        return cast(Rope, self.rotary(torch.arange(first, first + count, device=device).unsqueeze(0)))

    def masked(self, x: Tensor) -> Tensor:
        """x with a bin 0 that says nothing, where mask_singletons."""
        if not self.settings.mask_singletons:
            return x
        return F.pad(x[..., 1:], (1, 0))

    def encode(self, x: Tensor) -> Tensor:
        """Logarithms of counts plus one, (B, C, S, W, N) -> states of the windows (B, W, D)."""
        if self.mask_token is not None:
            token = self.mask_token.to(x.dtype).expand_as(x[..., :1])
            x = torch.cat((token, x[..., 1:]), dim=-1)
        if self.adapter is not None:
            x = self.adapter(x)
        return cast(Tensor, self.transformer["bt2ls"](self.masked(x)))

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D)."""
        return cast(Tensor, self.transformer["ote"](tokens))

    def through(self, states: Tensor, source: int) -> tuple[Tensor, list[KeyValue]]:
        """States of positions 0, 1, ..., of which the first `source` are windows, (B, source + T, D), through
        all blocks; with the keys and values of each block, (B, H, source + T, Dh).
        """
        x, kept = self.transformer["drop"](states), list[KeyValue]()
        rope = self.rope(0, x.shape[1], x.device)
        for block in self.blocks:
            if self.settings.recomputes and torch.is_grad_enabled():
                x, *keys_values = checkpoint(_through_block, block, x, rope, source, use_reentrant=False)
            else:
                x, *keys_values = _through_block(block, x, rope, source)
            kept.append((keys_values[0], keys_values[1]))
        return x, kept

    def run(self, inputs: Tensor, tokens: Tensor) -> Hidden:
        """inputs: as `encode` takes them; tokens (B, T), the first of which begins the sequence -> states of
        these tokens (B, T, D), before the last norm.
        """
        source = self.encode(inputs)
        x, _ = self.through(torch.cat((source, self.embed(tokens)), dim=1), source.shape[1])
        return Hidden(x[:, source.shape[1] :], torch.ones((), device=x.device))

    @property
    def head(self) -> tuple[nn.Module, Tensor]:
        """Last norm and output weight (V, D)."""
        return self.transformer["ln_f"], self.lm_head.weight

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> (..., V)."""
        return cast(Tensor, self.lm_head(self.transformer["ln_f"](states)))

    def forward(self, inputs: Tensor, tokens: Tensor) -> Tensor:
        """As `run`, to logits (B, T, V): those after the token at each place."""
        return self.logits(self.run(inputs, tokens).states)

    def roles(self) -> dict[str, str]:
        """As models.network.Network.roles. What is trained of a backbone that an adapter keeps goes by its
        dimensions.
        """
        roles = by_layer_type(self)
        backbone = dict(self._backbone())
        if not self._keeps_backbone:
            return roles | {name: ADAPTER for name in roles if name not in backbone}
        for name, parameter in self.named_parameters():
            if name not in backbone:
                roles[name] = ADAPTER
            elif parameter.requires_grad:
                roles[name] = TUNED if parameter.dim() >= 2 else TUNED_VECTOR
            else:
                roles[name] = FROZEN
        return roles

    def begins_with(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What it begins with, of a file's weights: all, with its own adapter unless `resumes_adapter`.

        Raises UserError where the file has an adapter and must have none, or the other way round.
        """
        found = dict(weights)
        if self.mask_token is None:  # where bin 0 is read, an earlier stage's is of no use
            found.pop(MASK_TOKEN, None)
        has_adapter = any(name.startswith("adapter.") for name in found)
        if has_adapter and self.adapter is None:
            raise UserError("it holds an adapter: give it as --resume-adapter, with --adapter")
        if has_adapter and not self.resumes_adapter:
            raise UserError("it holds an adapter already: give it as --resume-adapter")
        if self.resumes_adapter and not has_adapter:
            raise UserError("it holds no adapter: give it as --checkpoint, for a new adapter")
        for name, parameter in self.named_parameters():
            if name == MASK_TOKEN or (name.startswith("adapter.") and not has_adapter):
                found.setdefault(name, parameter.detach())
        return found

    def flops_per_token(self, length: int | None = None) -> float:
        """Floating-point operations of training per token of the targets: of all positions and of windows'
        histograms, over the number of windows. Weights that are not trained save the product for their
        gradients.
        """
        settings, width = self.settings, self.settings.n_embd
        windows, positions = settings.n_windows, 2 * settings.n_windows
        uses = {"transformer.bt2ls": CHANNELS * SCALES * windows, "transformer.h": positions}
        uses |= {"adapter": CHANNELS * SCALES * windows, "lm_head": windows}
        total = 0.0
        for name, parameter in self.named_parameters():
            times = next((count for part, count in uses.items() if name.startswith(part)), 0)
            if parameter.dim() >= 2:
                total += (6 if parameter.requires_grad else 4) * parameter.numel() * times
        pairs = windows**2 + windows * windows + windows * (windows + 1) / 2
        total += 6 * 2 * width * pairs * settings.n_layer
        return total / windows

    def compile_blocks(self) -> None:
        """Compile what a block does before and after attention."""
        for block in self.blocks:
            for name in block.compiled:
                setattr(block, name, torch.compile(getattr(block, name)))

    def describe(self) -> str:
        """Its shape in a few words."""
        settings = self.settings
        parameters = sum(parameter.numel() for parameter in self.parameters())
        words = (
            f"coalescence times of {settings.n_windows} windows, {settings.input_samples} samples,"
            f" {settings.n_layer} layers, {parameters:,} parameters"
        )
        if self.adapter is None:
            return words
        trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        return f"{words}, of which {trained:,} are trained: an adapter and part of the network below it"
