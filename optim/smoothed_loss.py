"""The loss of the last steps, smoothed: an exponential mean without the bias of its start at 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optim.hooks import Hook, Stop
from optim.reporting import log

DECAY = 0.9


class SmoothedLoss(Hook):
    """Logs it every so many steps; 0: never."""

    def __init__(self, every: int) -> None:
        self.every, self.mean, self.steps = every, 0.0, 0

    @property
    def value(self) -> float:
        """NaN before the first loss."""
        return self.mean / (1 - DECAY**self.steps) if self.steps else math.nan

    def add(self, loss: float) -> None:
        if not math.isfinite(loss):  # of a step that was skipped
            return
        self.mean = DECAY * self.mean + (1 - DECAY) * loss
        self.steps += 1

    def stepped(self, step: int, loss: float) -> Stop | None:
        """As Hook.stepped."""
        self.add(loss)
        if self.every and step % self.every == 0:
            log.info(f"smoothed loss at step {step}: {self.value:.4f}")
        return None

    def state(self) -> dict[str, Any]:
        """As Hook.state."""
        return {"mean": self.mean, "steps": self.steps}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """As Hook.take_up."""
        if state:  # that of the hook at this place, which may have been another
            self.mean, self.steps = state["mean"], state["steps"]
