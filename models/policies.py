"""Who goes round the middle layers again: one function for each policy of the table in models/variants.py.

Each takes the model, x (B, T, D) after the first layers, the memory through which blocks run, and the
targets; and returns a dict:
  hidden          (B, T, D) to be normed and projected to logits
  passes          middle passes per token, on average (scalar)
  active          of routed models, tokens of a sequence that take part in each pass, on average
  penalty         to be added to the loss, where the policy has one
  loss, cross_entropy_loss   where the policy weighs the loss itself
  router_weights  positions and scores (B, T_r) of each routed pass

Legend: B batch, T positions, T_r tokens still active in pass r, R passes, D model width, Dh head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import KeyValue
from models.loss import linear_cross_entropy

if TYPE_CHECKING:
    from models.transformer import Transformer


class Memory:
    """Keys and values of one forward pass over whole sequences: the middle layers see earlier passes, if
    they do in this model, all else itself.
    """

    def __init__(self, model: Transformer, everyone: Tensor) -> None:
        """everyone: positions (1, T) of all tokens."""
        self.model, self.everyone = model, everyone
        self.here = model.positions(everyone, [everyone])
        self.past: list[list[KeyValue]] = (
            [[] for _ in model.blocks("h_mid")] if model.settings.row.attends == "all" else []
        )
        self.positions: list[Tensor] = []

    def run(self, stack: str, number: int, x: Tensor, positions: Tensor) -> Tensor:
        """A stack's blocks over x (B, T_r, D) at positions (1 or B, T_r), in a pass (1-based)."""
        if stack != "h_mid" or not self.past:
            return self.model.one_pass(stack, x, [[] for _ in self.model.blocks(stack)], self.here)[0]
        self.positions.append(positions)
        x, made = self.model.one_pass(stack, x, self.past, self.model.positions(positions, self.positions))
        self.past = [[*past, own] for past, own in zip(self.past, made, strict=True)]
        return x

    def run_block(self, layer: int, number: int, x: Tensor, x_keys: Tensor | None) -> Tensor:
        """One middle block, the unit of activation checkpointing here, over all tokens x (B, T, D) in a pass.

        x_keys: what keys and values are made of, if not x.
        """
        return self.model.remade(
            self.model.blocks("h_mid")[layer], x, x_keys, [], self.here, units=("block", "pass")
        )[0]


def fixed(model: Transformer, x: Tensor, memory: Memory, targets: Tensor | None) -> dict[str, Any]:
    """All tokens take all passes (section 3)."""
    repeats = model.settings.n_repeat
    for number in range(1, repeats + 1):
        x = model.norm_mid(memory.run("h_mid", number, model.add_depth(x, number), memory.everyone))
    return {
        "hidden": memory.run("h_end", 1, x, memory.everyone),
        "passes": torch.tensor(float(repeats), device=x.device),
    }


def tokens_kept(policy: str, share: float, active: int) -> int:
    """How many of the active tokens go on.

    The authors' masked model multiplies in float32, which can round otherwise.
    """
    return int(np.float32(active) * np.float32(share)) if policy == "masked" else int(share * active)


def capacities(factors: list[float]) -> list[float]:
    """Shares of all tokens -> shares of those still active."""
    return [
        after / before if before else 0.0 for before, after in zip([1.0, *factors], factors, strict=False)
    ]


def passing(logits: Tensor, thresholds: list[float] | None, number: int, active: Tensor) -> Tensor | None:
    """After a pass (1-based): with threshold routing, which of the active tokens (B, T_r) go on; None where
    capacities decide.

    Causal: a token's own score against a number that is fixed beforehand.
    """
    return None if thresholds is None else (logits.sigmoid() > thresholds[number - 1]) & active


def compact(model: Transformer, x: Tensor, memory: Memory, targets: Tensor | None) -> dict[str, Any]:
    """Mixture of Repeats (section 4.1): only the tokens that go on are gathered for the next pass.

    By capacity those with the best scores do: the choice compares scores over the whole sequence, so it looks
    at later tokens and is not causal. By threshold sequences keep different numbers; they are filled up with
    tokens that stand nowhere, which no query sees.
    """
    batch, length, width = x.shape
    shares, thresholds, nowhere = (
        capacities(model.length_factors()),
        model.thresholds(),
        model.settings.sequence_length,
    )
    places = F.pad(memory.everyone.expand(batch, -1), (0, 1), value=nowhere)  # column T is what fills up
    columns = torch.arange(length, device=x.device).expand(batch, -1)
    at, scores, routed, active = memory.everyone, None, [], []
    final = F.pad(x, (0, 0, 0, 1))
    for number in range(1, model.settings.n_repeat + 1):
        real = at < nowhere
        active.append(columns.shape[1] if thresholds is None else float(real.sum()) / real.shape[0])
        x_in = x
        x = memory.run("h_mid", number, model.add_depth(x, number), at)
        x = _mix(x_in, model.norm_mid(x), scores)
        final = final.scatter(1, columns.unsqueeze(-1).expand(-1, -1, width), x.type_as(final))
        if number == model.settings.n_repeat:
            break
        logits = model.route(x, number)
        routed.append((columns, logits.sigmoid()))
        going = passing(logits, thresholds, number, real)
        kept = (
            tokens_kept("compact", shares[number - 1], columns.shape[1])
            if going is None
            else int(going.sum(1).max())
        )
        if kept == 0:
            break
        # everyone: nothing to gather, and attention stays in plain causal order
        if going is None and kept == columns.shape[1]:
            scores = logits.sigmoid()
            continue
        if going is None:
            chosen = logits.topk(kept, dim=1, sorted=False).indices.sort(dim=1).values
            columns = columns.gather(1, chosen)
        else:
            chosen = (~going).byte().sort(dim=1, stable=True).indices[:, :kept]
            columns = columns.gather(1, chosen).masked_fill(~going.gather(1, chosen), length)
        at = places.gather(1, columns)
        scores = logits.gather(1, chosen).sigmoid()
        x = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, width))
    return {
        "hidden": memory.run("h_end", 1, final[:, :length], memory.everyone),
        "router_weights": routed,
        "active": active,
        "passes": torch.tensor(sum(active) / length, device=x.device),
    }


def masked(model: Transformer, x: Tensor, memory: Memory, targets: Tensor | None) -> dict[str, Any]:
    """The same choices over a block universal transformer: tokens that stopped keep their state, and serve
    as keys.
    """
    shares, thresholds = capacities(model.length_factors()), model.thresholds()
    # what fills up a batch stands beyond
    active = (memory.everyone < model.settings.sequence_length).expand(x.shape[:2])
    scores, routed, counts, kept = None, [], [], x.shape[1]
    for number in range(1, model.settings.n_repeat + 1):
        counts.append(kept if thresholds is None else float(active.sum()) / x.shape[0])
        x_in = x
        x = model.add_depth(x, number)
        for layer in range(len(model.blocks("h_mid"))):
            x = torch.where(active.unsqueeze(-1), memory.run_block(layer, number, x, None), x_in)
        x = _mix(x_in, model.norm_mid(x), scores)
        if number == model.settings.n_repeat:
            break
        logits = model.route(x, number)
        routed.append((torch.arange(x.shape[1], device=x.device).expand_as(logits), logits.sigmoid()))
        going = passing(logits, thresholds, number, active)
        if going is None:
            kept = tokens_kept("masked", shares[number - 1], kept)
            chosen = logits.masked_fill(~active, -torch.inf).topk(kept, dim=1, sorted=False).indices
            going = torch.zeros_like(active).scatter(1, chosen, True)
        active = going
        scores = logits.sigmoid() * active
    return {
        "hidden": memory.run("h_end", 1, x, memory.everyone),
        "router_weights": routed,
        "active": counts,
        "passes": torch.tensor(sum(counts) / x.shape[1], device=x.device),
    }


def _mix(x_in: Tensor, x_out: Tensor, scores: Tensor | None) -> Tensor:
    """A token goes on by as much as its router wanted it to; the first pass has no router before it."""
    if scores is None:
        return x_out
    return x_in * (1 - scores.unsqueeze(-1)) + x_out * scores.unsqueeze(-1)


def sticks(model: Transformer, x: Tensor, memory: Memory, targets: Tensor | None) -> dict[str, Any]:
    """Stick breaking (Tan et al. 2023): keys are a mix, by halting mass, of the states at which tokens
    halted.

    The depth penalty is a sum over tokens, as the authors have it, not a mean.
    """
    settings = model.settings
    going_on = torch.ones(x.shape[:2], device=x.device)  # probability that a token has not halted
    log_going_on = torch.zeros_like(going_on)
    active, open_mass = (
        torch.ones_like(going_on, dtype=torch.bool),
        torch.ones_like(going_on, dtype=torch.bool),
    )
    frozen, depth, total = torch.zeros_like(x), x.new_zeros(()), x.new_zeros(())
    for number in range(1, settings.n_repeat + 1):
        x_in = x
        x = model.add_depth(x, number)
        for layer in range(len(model.blocks("h_mid"))):
            x = memory.run_block(layer, number, x, frozen + going_on.unsqueeze(-1) * x)
        x = torch.where(active.unsqueeze(-1), x, x_in)
        total = total + active.sum()
        log_on, log_halt = (log_going_on.unsqueeze(-1) + model.depth_predictor(x)).unbind(-1)
        depth = depth + (number * log_halt.exp() * open_mass).sum()
        log_going_on, left = log_on, log_on.exp()
        stops = left < 1 - settings.halt_threshold if number < settings.n_repeat else torch.ones_like(active)
        left = left.masked_fill(stops, 0)
        frozen = frozen + (going_on - left).unsqueeze(-1) * x
        going_on, open_mass, active = left, ~stops, active & ~stops
    depth = depth + (log_going_on.exp() * (settings.n_repeat + 1)).sum()
    done = {"hidden": memory.run("h_end", 1, x, memory.everyone), "passes": total / active.numel()}
    return done | {"penalty": settings.act_penalty * depth} if model.training else done


def ponder(model: Transformer, x: Tensor, memory: Memory, targets: Tensor | None) -> dict[str, Any]:
    """PonderNet (Banino et al. 2021): every pass has an exit; training weighs all exits, evaluation draws
    one a token.
    """
    exits, halts = [], []
    for number in range(1, model.settings.n_repeat + 1):
        x = memory.run("h_mid", number, model.add_depth(x, number), memory.everyone)
        exits.append(memory.run("h_end", number, x, memory.everyone))
        halts.append(torch.sigmoid(model.to_halt_logits[number - 1](exits[-1]).squeeze(-1)))
    hidden, halt = torch.stack(exits, dim=1), torch.stack(halts, dim=1)  # (B, R, T, D), (B, R, T)
    stopped = (torch.rand_like(halt) <= halt).cumsum(1) > 0
    exit_pass = (~stopped).sum(1).clamp(max=model.settings.n_repeat - 1)  # (B, T)
    done = {
        "hidden": hidden.gather(1, exit_pass[:, None, :, None].expand(-1, 1, -1, x.shape[-1])).squeeze(1),
        "passes": (exit_pass + 1).float().mean(),
    }
    return (
        done | _ponder_loss(model, hidden, halt, targets) if model.training and targets is not None else done
    )


def _ponder_loss(model: Transformer, hidden: Tensor, halt: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Expected loss over exits, plus the divergence of the exits' distribution from a geometric one."""
    settings, repeats, width = model.settings, hidden.shape[1], hidden.shape[-1]
    mass = torch.clamp(_rest_to_last(_geometric(halt.transpose(1, 2).flatten(0, 1))), 0.0, 1.0)  # (B T, R)
    prior = _rest_to_last(_geometric(torch.full((1, repeats), settings.ponder_lambda_p, device=halt.device)))
    divergence = F.kl_div((mass + 1e-8).log(), prior.expand_as(mass), reduction="batchmean")
    norm, weight = model.head
    # the authors read the (B T, R) masses in the order (B, R, T) of the losses; their published numbers stand
    # on it
    total, _, _ = linear_cross_entropy(
        norm(hidden).reshape(-1, width),
        weight,
        targets.unsqueeze(1).expand(-1, repeats, -1).flatten(),
        mass.flatten(),
    )
    expected = total / mass.numel()
    return {
        "cross_entropy_loss": expected,
        "loss": expected + settings.ponder_kl_div_loss_weight * divergence,
    }


def _geometric(rates: Tensor) -> Tensor:
    """Rates of stopping at each of R steps (N, R) -> probabilities of stopping there and not before."""
    left = torch.clamp(1 - rates, min=1e-10, max=1.0).log().cumsum(-1).exp()
    return F.pad(left[:, :-1], (1, 0), value=1.0) * rates


def _rest_to_last(mass: Tensor) -> Tensor:
    """Give what is missing to one to the last step."""
    return torch.cat((mass[:, :-1], 1 - mass[:, :-1].sum(-1, keepdim=True)), dim=-1)


POLICIES = {"fixed": fixed, "compact": compact, "masked": masked, "ponder": ponder, "sticks": sticks}
