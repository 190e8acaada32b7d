"""Knowledge distillation: a network learns from the distributions of a frozen one (Hinton et al. 2015).

    teacher = load_teacher("exps/stdlib/base/deep/ckpt.pt")         # optim/objectives/teacher.py
    fit(Distillation(network, teacher.network, temperature=4.0, alpha=0.7), source, steps=1000)

The loss of a token is alpha T^2 KL(teacher || student), of both distributions at temperature T, plus
(1 - alpha) times its cross-entropy. Logits exist for a slice of tokens at a time, of both networks, and the
gradient of a slice is made while they are at hand.

Legend: B batch, T positions, N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batch import Batch
from errors import UserError
from models.loss import CACHED_ELEMENTS, IGNORE, SLICE_ELEMENTS
from models.precision import computing_dtype, without_autocast
from optim.objectives import Loss

NETWORKS = 2  # whose logits share the memory of a slice
PARTS = 4  # of a slice, for which losses and gradients are made one after the other
TEACHER = "teacher"


def soft_target_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(teacher || student) of each token, (..., V) -> (...); T^2 keeps the size of the gradient."""
    student = (student_logits / temperature).log_softmax(-1)
    teacher = (teacher_logits / temperature).log_softmax(-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * divergence


def distillation_losses(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float, alpha: float
) -> Tensor:
    """Of each token, (N, V) and (N,) -> (N,); 0 where the target is IGNORE."""
    total = torch.zeros(targets.shape, dtype=student_logits.dtype, device=targets.device)
    if alpha > 0:
        total = min(alpha, 1.0) * soft_target_losses(student_logits, teacher_logits, temperature)
    if alpha < 1:
        of_targets = F.cross_entropy(student_logits, targets, ignore_index=IGNORE, reduction="none")
        total = total + (1 - alpha) * of_targets
    return total * (targets != IGNORE)


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, mask: Tensor | None = None
) -> Tensor:
    """Mean of `soft_target_losses` over the tokens that count. mask (...): 1 for these (None: all)."""
    losses = soft_target_losses(student_logits, teacher_logits, temperature)
    return losses.mean() if mask is None else (losses * mask).sum() / mask.sum()


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float = 4.0,
    alpha: float = 0.7,
) -> Tensor:
    """alpha x `soft_target_loss` + (1 - alpha) x cross-entropy, mean over the targets (...) that are not
    IGNORE; alpha >= 1: the first alone.
    """
    flat = student_logits.flatten(0, -2), teacher_logits.flatten(0, -2), targets.flatten()
    return distillation_losses(*flat, temperature, alpha).sum() / (targets != IGNORE).sum()


@dataclass(frozen=True)
class Logits:
    """Logits that are yet to be made: of hidden (N, D), after the last norm, and weight, whose first
    `vocabulary` rows are those of tokens. softcap c: of products z, c tanh(z / c). dtype: of the products.
    """

    hidden: Tensor
    weight: Tensor
    vocabulary: int
    softcap: float | None
    dtype: torch.dtype

    @classmethod
    def after(cls, network: Any, states: Tensor) -> Logits:
        """Of a network (models.network.Network) and the states (B, T, D) of its run."""
        norm, weight = network.head
        hidden = norm(states).flatten(0, 1)
        vocabulary = getattr(network, "vocabulary", None) or weight.shape[0]
        softcap = getattr(network, "softcap", None)
        return cls(hidden, weight, vocabulary, softcap, computing_dtype(hidden.device, hidden.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """(N, D) and (V, D), whose products the logits are."""
        return self.hidden.to(self.dtype), self.weight[: self.vocabulary].to(self.dtype)

    def capped(self, products: Tensor) -> Tensor:
        return products if self.softcap is None else self.softcap * (products / self.softcap).tanh()


def _few_rows(logits: Tensor) -> Iterator[slice]:
    """Parts of a slice of logits (n, V), whose losses and gradients need several times their own memory; on a
    CPU these stay in its cache.
    """
    elements = CACHED_ELEMENTS if logits.device.type == "cpu" else logits.numel() // PARTS
    rows = max(1, elements // logits.shape[1])
    for begin in range(0, len(logits), rows):
        yield slice(begin, begin + rows)


class _LinearDistillation(torch.autograd.Function):
    """Gradients are made in the forward pass, slice by slice, by autograd within the slice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        student: Logits,
        teacher: Logits,
        targets: Tensor,
        temperature: float,
        alpha: float,
        want_grad: bool,
    ) -> Tensor:
        n, (x, w), (of_teacher, head_of_teacher) = len(targets), student.factors(), teacher.factors()
        rows = max(1, SLICE_ELEMENTS // (NETWORKS * student.vocabulary))
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if want_grad else None
        grad_weight = torch.zeros_like(weight) if want_grad else None
        for begin in range(0, n, rows):
            part = slice(begin, min(n, begin + rows))
            products = (x[part] @ w.t()).float()
            wanted = (of_teacher[part] @ head_of_teacher.t()).float()
            for few in _few_rows(products):
                given = products[few].requires_grad_(want_grad)
                with torch.set_grad_enabled(want_grad):
                    pair = student.capped(given), teacher.capped(wanted[few])
                    loss = distillation_losses(*pair, targets[part][few], temperature, alpha).sum()
                total += loss.detach()
                if want_grad:
                    products[few] = torch.autograd.grad(loss, given)[0]
            if grad_hidden is not None and grad_weight is not None:
                grad = products.to(student.dtype)
                grad_hidden[part] = grad @ w
                if student.dtype == weight.dtype:
                    grad_weight[: len(w)].addmm_(grad.t(), x[part])
                else:
                    grad_weight[: len(w)] += grad.t() @ x[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad_total), grad_weight.mul_(grad_total), *(None,) * 6


def linear_distillation(
    student: Logits, teacher: Logits, targets: Tensor, temperature: float, alpha: float
) -> Tensor:
    """Sum of `distillation_losses`, targets (N,), of logits that never exist all at once. Only the student
    gets a gradient.
    """
    with without_autocast(targets.device):
        total: Tensor = _LinearDistillation.apply(
            student.hidden,
            student.weight,
            student,
            teacher,
            targets,
            temperature,
            alpha,
            torch.is_grad_enabled(),
        )
    return total


class Distillation(nn.Module):
    """`distillation_loss` of a network and a frozen teacher, and what the network adds to it.

    frozen: by name, which file each part is that is not trained (optim.initial.describe).
    """

    def __init__(
        self,
        network: Any,
        teacher: nn.Module,
        temperature: float = 4.0,
        alpha: float = 0.7,
        teacher_dtype: torch.dtype = torch.float32,
        file: Mapping[str, str] | None = None,
    ) -> None:
        """network, teacher: as models.network.Network, of one vocabulary. file: of the teacher, as
        optim.initial.describe has it: a resume wants the same one.
        """
        super().__init__()
        self.network, self.teacher = network, teacher.requires_grad_(False).eval()
        self.temperature, self.alpha, self.teacher_dtype = temperature, alpha, teacher_dtype
        self.may_leave_unused: bool = network.may_leave_unused
        self.frozen = {} if file is None else {TEACHER: file}

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _wanted(self, inputs: Tensor) -> Logits:
        """Of the teacher, in its own dtype."""
        device = inputs.device.type
        in_half = self.teacher_dtype != torch.float32
        precision = torch.autocast(device, self.teacher_dtype) if in_half else without_autocast(inputs.device)
        with torch.no_grad(), precision:
            teacher: Any = self.teacher
            return Logits.after(teacher, teacher.run(inputs).states)

    def forward(self, batch: Batch) -> Loss:
        """Raises UserError for a network without one state of each token."""
        inputs, targets = batch["inputs"], batch["targets"]
        wanted = self._wanted(inputs)
        hidden = self.network.run(inputs)
        if hidden.exits is not None:
            raise UserError("distillation compares one state of each token, and this network has several")
        mine = Logits.after(self.network, hidden.states)
        total = linear_distillation(mine, wanted, targets.flatten(), self.temperature, self.alpha)
        penalty = 0.0 if hidden.penalty is None else hidden.penalty
        return Loss(total / (targets != IGNORE).sum() + penalty, batch.count)

    def describe(self) -> list[str]:
        """As NextToken.describe."""
        teacher: Any = self.teacher
        dtype = str(self.teacher_dtype).removeprefix("torch.")
        return [
            f"objective: distillation, temperature {self.temperature:g}, alpha {self.alpha:g}",
            f"teacher: {self.frozen[TEACHER]['file']}, {teacher.describe()}, in {dtype}",
        ]

    def flops_per_token(self) -> float:
        """As models.network.Network: those of the network, and a forward pass of the teacher."""
        teacher: Any = self.teacher
        return float(self.network.flops_per_token() + teacher.flops_per_token() / 3)
