"""Multi-token prediction: heads that predict the tokens after the next one, trained beside the network.

    objective = MultiTokenPrediction(network, n_predict=2, mtp_weight=0.3)
    fit(objective, source, steps=1000)

Head k reads, at position t, its own output of head k - 1 (the network's state for the first) and the token
t + k, and predicts token t + k + 1: they are chained (DeepSeek-AI 2024, section 2.2). The heads share the
network's embeddings and its output head, and are of no use once training is over.

Legend: B batch, T positions, H heads, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batch import Batch
from errors import UserError
from models.attention import AttentionPlan, Rotary, attend, rotate
from models.hidden import Hidden
from models.losses import NextTokenLoss, next_token
from models.memory import recompute
from models.settings import ModelSettings
from optim.objectives import Loss

NORM_EPS = 1e-5
INIT_STD = 0.02


def multi_token_loss(main: Tensor, depths: Sequence[Tensor], mtp_weight: float = 0.3) -> Tensor:
    """The next-token loss plus mtp_weight x the mean of the heads' losses, all scalars."""
    if not depths:
        return main
    return main + mtp_weight * torch.stack(list(depths)).mean()


class _Attention(nn.Module):
    """Causal; positions are encoded where there is a rotary module."""

    def __init__(self, width: int, heads: int, rotary: Rotary | None) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.rotary = rotary

    def forward(self, x: Tensor) -> Tensor:
        rope = None
        if self.rotary is not None:
            rope = self.rotary(torch.arange(x.shape[1], device=x.device).unsqueeze(0))
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, Dh)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = attend(rotate(q, rope), [(rotate(k, rope), v)], AttentionPlan(rope), dropout=0.0)
        return cast(Tensor, self.o_proj(y.transpose(1, 2).flatten(-2)))


class _FeedForward(nn.Module):
    """Twice as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.gelu(self.up(x))))


class HeadBlock(nn.Module):
    """The block of a head: RMSNorm before attention and MLP, no biases. rotary: None for no positions."""

    def __init__(self, width: int, heads: int, rotary: Rotary | None = None) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = _Attention(width, heads, rotary)
        self.ffn_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.ffn = _FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x))
        return cast(Tensor, x + self.ffn(self.ffn_norm(x)))


def block_like(settings: ModelSettings) -> HeadBlock:
    """For heads of a network of these settings: half as many attention heads (all of them, where half do not
    divide the width), and positions where the network has them.
    """
    width, is_rotary = settings.n_embd, settings.positional_encoder == "rotary"
    heads = max(1, settings.n_head // 2)
    if width % heads or (is_rotary and width // heads % 2):
        heads = settings.n_head
    rotary = Rotary(width // heads, settings.rope_base) if is_rotary else None
    return HeadBlock(width, heads, rotary)


class MTPHead(nn.Module):
    """One head: states h and the embeddings of the tokens after them -> states that predict further ahead."""

    def __init__(self, width: int, block: nn.Module) -> None:
        """block: (B, T, D) -> (B, T, D), causal."""
        super().__init__()
        self.hidden_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.embed_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(2 * width, width, bias=False)
        self.block = block
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """h, embedded (B, T, D) -> (B, T, D)."""
        both = torch.cat((self.hidden_norm(h), self.embed_norm(embedded)), dim=-1)
        return cast(Tensor, self.block(self.proj(both)))


class MultiTokenPrediction(nn.Module):
    """Cross-entropy of the next token, what the network adds to it, and mtp_weight x the mean cross-entropy
    of the heads, each over the positions whose token lies within the sequence.
    """

    def __init__(
        self,
        network: Any,
        n_predict: int = 2,
        mtp_weight: float = 0.3,
        blocks: Sequence[nn.Module] | None = None,
    ) -> None:
        """network: as models.network.Network, with `embedding`, its nn.Embedding. blocks: one for each head;
        None: those that suit the network's settings.
        """
        super().__init__()
        if blocks is None:
            blocks = [block_like(network.settings) for _ in range(n_predict)]
        assert len(blocks) == n_predict, "each head has a block"
        self.network, self.mtp_weight = network, mtp_weight
        self.may_leave_unused: bool = network.may_leave_unused
        width = network.embedding.weight.shape[1]
        self.mtp_heads = nn.ModuleList(MTPHead(width, block) for block in blocks)

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[NextTokenLoss, list[NextTokenLoss]]:
        """The next-token loss, and that of each head that has something to predict: of head k (from 1) at
        positions 0 .. T - k - 1. inputs, targets (B, T); a target IGNORE reads as token 0. Raises UserError
        for a network without one state of each token.
        """
        hidden = self.network.run(inputs)
        if hidden.exits is not None:
            raise UserError("multi-token heads read one state of each token, and this network has several")
        main, depths, h = next_token(self.network, hidden, targets), [], hidden.states
        settings = getattr(self.network, "settings", None)
        for k, head in enumerate(self.mtp_heads[: targets.shape[1] - 1], start=1):
            embedded = self.network.embedding(targets[:, k - 1 : -1].clamp_min(0))
            given = h[:, :-1], embedded
            if settings is None:
                h = head(*given)
            else:
                h = recompute(settings, head, *given, units=("block", "pass"))
            depths.append(next_token(self.network, Hidden(h, hidden.passes), targets[:, k:]))
        return main, depths

    def forward(self, batch: Batch) -> Loss:
        main, depths = self.losses(batch["inputs"], batch["targets"])
        total = multi_token_loss(main.loss, [depth.loss for depth in depths], self.mtp_weight)
        return Loss(total, batch.count)

    def describe(self) -> list[str]:
        """As NextToken.describe."""
        parameters = sum(p.numel() for p in self.mtp_heads.parameters())
        return [
            f"objective: multi_token, {len(self.mtp_heads)} heads of {parameters:,} parameters, weight"
            f" {self.mtp_weight:g}"
        ]

    def flops_per_token(self) -> float:
        """Useful floating-point operations of a forward and a backward pass, as models.network.Network has
        them; those of the heads without their attention's scores.
        """
        shared = self.network.head[1].numel()
        of_heads = sum(p.numel() for p in self.mtp_heads.parameters()) + len(self.mtp_heads) * shared
        return float(self.network.flops_per_token() + 6 * of_heads)
