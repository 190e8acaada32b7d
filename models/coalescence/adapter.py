"""From the counts of few haplotypes to those that a trained network takes.

Legend: B batch, C channels, S scales, W windows, N bins.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.coalescence.settings import AdapterSettings

FIRST_ALPHA = 1e-3  # share of the branch at the beginning


class Adapter(nn.Module):
    """A gate over the bins, from their means (Hu et al. 2018); then a linear map, and a gated branch (Shazeer
    2020) that begins almost at nothing. Linear layers begin as torch has them.
    """

    def __init__(self, settings: AdapterSettings, n_out: int) -> None:
        super().__init__()
        n_in, hidden, inner = settings.n_samples, max(settings.n_samples // 4, 1), settings.bottleneck
        self.alpha = nn.Parameter(torch.tensor(FIRST_ALPHA))
        self.ln = nn.LayerNorm(n_in)
        self.se = nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, n_in), nn.Sigmoid())
        self.fc_in = nn.Linear(n_in, 2 * inner, bias=False)
        self.fc_out = nn.Linear(inner, n_out)
        self.drop = nn.Dropout(settings.dropout)
        self.proj = nn.Identity() if n_in == n_out else nn.Linear(n_in, n_out)

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, S, W, N) -> (B, N)."""
        return cast(Tensor, self.se(x.mean(dim=(1, 2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, W, N) -> (B, C, S, W, bins of the network)."""
        x = x * self.gate(x)[:, None, None, None, :]
        value, gate = self.fc_in(self.ln(x)).chunk(2, dim=-1)
        branch = self.fc_out(self.drop(F.silu(gate) * value))
        return cast(Tensor, self.proj(x) + self.alpha * branch)
