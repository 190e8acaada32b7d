"""Muon for matrices, AdamW for all other parameters, in one optimiser.

    groups = [{"params": matrices, **MUON}, {"params": others, **ADAMW, "betas": (0.8, 0.95)}]
    Muon(groups, lr=0.02, weight_decay=0.1)

A matrix moves by its momentum's nearest orthogonal matrix (Polar Express), each row or column of which is
then scaled by a running mean of its squares (NorMuon), the norm of the whole kept. Weight decay is cautious:
on the weights whose sign the step shares. Products may be in bfloat16; everything else stays float32, also
where the public code rounds rate and decay to bfloat16.

Legend: R rows (outputs), C columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from distributed.world import World

# settings of a group of each kind; momentum_course: from, to, steps on the way (optim/schedules.py)
MUON = MappingProxyType(
    {
        "kind": "muon",
        "momentum": 0.95,
        "momentum_course": (0.85, 0.95, 300),
        "beta2": 0.95,
        "polar_steps": 5,
    }
)
ADAMW = MappingProxyType({"kind": "adamw", "betas": (0.9, 0.95), "eps": 1e-10, "fused": None})
# a, b, c of each step of Polar Express: X <- a X + (b A + c A^2) X, A = X X^T
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
NORM_MARGIN = 1.02  # above the largest singular value, which must not exceed 1 before the first step


class Muon(Optimizer):
    """Groups are of one kind each, as `MUON` and `ADAMW` say; rate and decay are set by the schedule.

    dtype: of the products that orthogonalise. world: the processes that share these products; every process
    has all gradients and keeps the whole state. Each matrix is computed by itself, by one process, so the
    update is the same bits on any number of them.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
        world: World | None = None,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.dtype, self.world = dtype, world

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Parameters without a gradient stay as they are, and so does their state."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            step = self._muon if group["kind"] == "muon" else self._adamw
            step(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        """As many matrices at a time as there are processes, the largest first, so that these are alike."""
        parameters.sort(key=lambda p: -p.numel())
        rank, size = (0, 1) if self.world is None else (self.world.rank, self.world.size)
        for first in range(0, len(parameters), size):
            shared, directions = parameters[first : first + size], []
            for owner, parameter in enumerate(shared):
                direction = self._momentum(group, parameter).to(self.dtype).contiguous()
                if owner == rank:
                    direction = orthogonal(direction, group["polar_steps"])
                directions.append(direction)
            for owner, (parameter, direction) in enumerate(zip(shared, directions, strict=True)):
                if self.world is not None:
                    self.world.broadcast_tensor(direction, owner)
                self._move(group, parameter, direction.float())

    def _momentum(self, group: dict[str, Any], parameter: nn.Parameter) -> Tensor:
        """Nesterov's (R, C); dimensions after the first are columns."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None, "parameters without a gradient are left out"
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            state["second_moment"] = parameter.new_zeros(second_moment_shape(parameter.shape))
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(buffer, group["momentum"]).flatten(1)

    def _move(self, group: dict[str, Any], parameter: nn.Parameter, direction: Tensor) -> None:
        """direction (R, C) float32."""
        update = normalised(direction, self.state[parameter]["second_moment"], group["beta2"])
        rate = group["lr"] * rate_factor(direction.shape)
        weight = parameter.flatten(1)
        decayed = weight * (update * weight >= 0)
        update.mul_(rate).add_(decayed, alpha=rate * group["weight_decay"])
        parameter.sub_(update.view_as(parameter))

    def _adamw(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        gradients, means, squares, steps = [], [], [], []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                where = parameter.device if group["fused"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=where)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            assert parameter.grad is not None, "parameters without a gradient are left out"
            gradients.append(parameter.grad)
            means.append(state["exp_avg"])
            squares.append(state["exp_avg_sq"])
            steps.append(state["step"])
        adamw(
            list(parameters),
            gradients,
            means,
            squares,
            [],
            steps,
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def rate_factor(shape: torch.Size) -> float:
    """Of the rate of a matrix (R, C): tall ones move further."""
    return float(max(1.0, shape[0] / shape[1]) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = len(POLAR_EXPRESS)) -> Tensor:
    """About U V^T of a matrix U S V^T (R, C), in its dtype; singular values end near 1. Zeros stay zeros."""
    x = matrix / (matrix.norm() * NORM_MARGIN + 1e-6)
    is_tall = x.size(0) > x.size(1)
    if is_tall:  # the smaller of the two products
        x = x.T
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    if is_tall:
        x = x.T
    return x.contiguous()


def second_moment_shape(shape: torch.Size) -> torch.Size:
    """One number for each row (R, 1) where rows are not fewer, else one for each column (1, C)."""
    rows, columns = shape[0], shape[1:].numel()
    return torch.Size([rows, 1] if rows >= columns else [1, columns])


def normalised(x: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """x (R, C) over the root of the running mean square of its rows or columns, which this step enters, at
    the norm that x has. second_moment: of `second_moment_shape`, changed in place.
    """
    axis = 1 if x.size(0) >= x.size(1) else 0
    square = x.square().mean(axis, keepdim=True)
    second_moment.lerp_(square, 1 - beta2)
    scale = second_moment.clamp_min(1e-10).rsqrt_()
    count = x.size(axis)
    norm = (square.sum() * count).sqrt()
    scaled_norm = ((square * scale.square()).sum() * count).sqrt()
    return x * (scale * (norm / scaled_norm.clamp_min(1e-10)))
