"""--adapt: which adapters a training adds to a network that is trained already.

adaptation("lora:8")        # as it is written: lora:RANK, or lora:RANK:ALPHA
lora_of("lora:8:16")        # Lora(rank=8, alpha=16.0)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORM = "lora:RANK or lora:RANK:ALPHA, such as lora:8, with a rank of 1 or more and an alpha above 0"


@dataclass(frozen=True)
class Lora:
    """Products of two matrices of a rank (Hu et al. 2021), times alpha / rank."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def lora_of(text: str) -> Lora:
    """Raises ValueError."""
    kind, *numbers = text.split(":")
    if kind != "lora" or len(numbers) not in (1, 2):
        raise ValueError(text)
    rank = int(numbers[0])
    found = Lora(rank, float(numbers[-1]))
    if rank < 1 or not 0 < found.alpha < math.inf:
        raise ValueError(text)
    return found


def adaptation(text: str) -> str:
    """One text for all that mean the same. Raises ValueError."""
    lora = lora_of(text)
    alpha = "" if lora.alpha == lora.rank else f":{lora.alpha:g}"
    return f"lora:{lora.rank}{alpha}"
