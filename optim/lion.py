"""Lion: each weight moves by the rate alone, against the sign of a momentum (Chen et al. 2023, algorithm 2).

    Lion(groups, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1)

    weight   <- weight (1 - lr decay) - lr sign(beta1 momentum + (1 - beta1) gradient)
    momentum <- beta2 momentum + (1 - beta2) gradient

Its rate is 3 to 10 times smaller than AdamW's, its decay as many times larger. State of a parameter:
`exp_avg`, the momentum, in its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Decoupled weight decay."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        """Raises ValueError for a beta outside [0, 1), and for a negative rate or decay."""
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lion: betas must be at least 0 and below 1, not {betas}")
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lion: rate {lr} and weight decay {weight_decay} must not be negative")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Parameters without a gradient stay as they are, and so does their state."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(group, parameters)
        return loss

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """All parameters at a time, in a few kernels where the device has them."""
        (beta1, beta2), rate = group["betas"], group["lr"]
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
            momenta.append(state["exp_avg"])
        directions = torch._foreach_lerp(momenta, gradients, 1 - beta1)
        torch._foreach_sign_(directions)
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-rate)
        torch._foreach_lerp_(momenta, gradients, 1 - beta2)
