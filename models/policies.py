"""Which tokens go through the middle layers again: one function for each policy of the table in
models/variants.py.

Each takes the passes of a run and x (B, T, D) after the first layers, and returns Hidden.

Legend: B batch, T positions, T_r tokens still active in pass r, R passes, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.hidden import Exits, Hidden
from models.passes import Passes
from models.routing import capacities, length_factors, thresholds, tokens_kept


def fixed(passes: Passes, x: Tensor) -> Hidden:
    """All tokens take all passes (section 3)."""
    for pass_number in passes.pass_numbers:
        x = passes.middle(pass_number, x)
    return Hidden(states=passes.end(x), passes=_average(float(passes.settings.n_repeat), x))


def compact(passes: Passes, x: Tensor) -> Hidden:
    """Mixture of Repeats (section 4.1): only the tokens that go on are gathered for the next pass.

    By capacity those with the best scores do: the choice compares scores over the whole sequence, so it looks
    at later tokens and is not causal. By threshold sequences keep different numbers; they are padded with
    tokens at the position `nowhere`, which no query sees.
    """
    batch, length, width = x.shape
    settings, nowhere = passes.settings, passes.memory.nowhere
    shares = capacities(length_factors(settings, passes.training))
    limits = thresholds(settings, passes.training)
    # position of each column of the sequence; column T is the padding
    column_positions = F.pad(passes.positions.expand(batch, -1), (0, 1), value=nowhere)
    columns = torch.arange(length, device=x.device).expand(batch, -1)  # of the active tokens
    positions, gathered, scores = passes.positions, None, None
    routing: list[tuple[Tensor, Tensor]] = []
    counts: list[float] = []
    final = F.pad(x, (0, 0, 0, 1))
    for pass_number in passes.pass_numbers:
        active = positions < nowhere
        count = columns.shape[1]
        counts.append(count if limits is None else float(active.sum()) / active.shape[0])
        x = _interpolated(x, passes.middle(pass_number, x, positions, gathered), scores)
        final = final.scatter(1, columns.unsqueeze(-1).expand(-1, -1, width), x.type_as(final))
        if passes.is_last(pass_number):
            break
        logits = passes.gates[pass_number - 1](x)
        routing.append((columns, logits.sigmoid()))
        if limits is None:
            kept = tokens_kept(shares[pass_number - 1], count, settings.variant.rounds_in_float32)
            if kept == count:  # nothing to gather, and attention stays in plain causal order
                scores = logits.sigmoid()
                continue
        else:
            keep_mask = _above(logits, limits[pass_number - 1], active)
            kept = int(keep_mask.sum(1).max())
        if kept == 0:
            break
        if limits is None:
            chosen = logits.topk(kept, dim=1, sorted=False).indices.sort(dim=1).values
            columns = columns.gather(1, chosen)
        else:
            chosen = (~keep_mask).byte().sort(dim=1, stable=True).indices[:, :kept]
            columns = columns.gather(1, chosen).masked_fill(~keep_mask.gather(1, chosen), length)
        positions, gathered = column_positions.gather(1, columns), columns
        scores = logits.gather(1, chosen).sigmoid()
        x = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, width))
    return Hidden(
        states=passes.end(final[:, :length]),
        passes=_average(sum(counts) / length, x),
        active=counts,
        routing=routing,
    )


def masked(passes: Passes, x: Tensor) -> Hidden:
    """The same choices over a block universal transformer: tokens that stopped keep their state, and serve
    as keys.
    """
    settings = passes.settings
    shares = capacities(length_factors(settings, passes.training))
    limits = thresholds(settings, passes.training)
    batch, length = x.shape[:2]
    # the padding of a batch has a position beyond the sequence
    active = (passes.positions < passes.memory.nowhere).expand(batch, length)
    scores, kept = None, length
    routing: list[tuple[Tensor, Tensor]] = []
    counts: list[float] = []
    for pass_number in passes.pass_numbers:
        counts.append(kept if limits is None else float(active.sum()) / batch)
        x = _interpolated(x, passes.middle_by_block(pass_number, x, keep_mask=active), scores)
        if passes.is_last(pass_number):
            break
        logits = passes.gates[pass_number - 1](x)
        routing.append((torch.arange(length, device=x.device).expand_as(logits), logits.sigmoid()))
        if limits is None:
            kept = tokens_kept(shares[pass_number - 1], kept, settings.variant.rounds_in_float32)
            chosen = logits.masked_fill(~active, -torch.inf).topk(kept, dim=1, sorted=False).indices
            active = torch.zeros_like(active).scatter(1, chosen, True)
        else:
            active = _above(logits, limits[pass_number - 1], active)
        scores = logits.sigmoid() * active
    return Hidden(
        states=passes.end(x), passes=_average(sum(counts) / length, x), active=counts, routing=routing
    )


def _average(passes: float, x: Tensor) -> Tensor:
    """Middle passes per token, beside x. A tensor made of a number of the host would wait for the device."""
    return torch.full((), passes, device=x.device)


def _above(logits: Tensor, threshold: float, active: Tensor) -> Tensor:
    """Which of the active tokens (B, T_r) go on. Causal: a token's own score against a number that is
    fixed beforehand.
    """
    return (logits.sigmoid() > threshold) & active


def _interpolated(x_in: Tensor, x_out: Tensor, scores: Tensor | None) -> Tensor:
    """From x_in to x_out by the score that a token had; the first pass has no router before it."""
    if scores is None:
        return x_out
    return x_in * (1 - scores.unsqueeze(-1)) + x_out * scores.unsqueeze(-1)


def sticks(passes: Passes, x: Tensor) -> Hidden:
    """Stick breaking (Tan et al. 2023): keys are an average, by halting mass, of the states at which tokens
    halted.

    The depth penalty is a sum over tokens, as the authors have it, not a mean.
    """
    settings, gate = passes.settings, passes.gates[0]
    remaining = torch.ones(x.shape[:2], device=x.device)  # probability that a token has not halted
    log_remaining = torch.zeros_like(remaining)
    active = torch.ones_like(remaining, dtype=torch.bool)
    goes_on = active  # after the pass before
    halted_states = torch.zeros_like(x)  # weighted by the probabilities of halting there
    depth, total = x.new_zeros(()), x.new_zeros(())

    def key_states(x: Tensor) -> Tensor:
        return halted_states + remaining.unsqueeze(-1) * x

    for pass_number in passes.pass_numbers:
        x_out = passes.middle_by_block(pass_number, x, key_states=key_states)
        x = torch.where(active.unsqueeze(-1), x_out, x)
        total = total + active.sum()
        log_on, log_halt = (log_remaining.unsqueeze(-1) + gate(x)).unbind(-1)
        depth = depth + (pass_number * log_halt.exp() * goes_on).sum()
        log_remaining, still = log_on, log_on.exp()
        stops = torch.ones_like(active)
        if not passes.is_last(pass_number):
            stops = still < 1 - settings.halt_threshold
        still = still.masked_fill(stops, 0)
        halted_states = halted_states + (remaining - still).unsqueeze(-1) * x
        remaining, goes_on = still, ~stops
        active = active & goes_on
    depth = depth + (log_remaining.exp() * (settings.n_repeat + 1)).sum()
    return Hidden(
        states=passes.end(x),
        passes=total / active.numel(),
        penalty=settings.act_penalty * depth if passes.training else None,
    )


def ponder(passes: Passes, x: Tensor) -> Hidden:
    """PonderNet (Banino et al. 2021): every pass has an exit; training weighs all exits, evaluation draws
    one a token.
    """
    settings = passes.settings
    exit_states, exit_halting = [], []
    for pass_number in passes.pass_numbers:
        x = passes.middle(pass_number, x)
        exit_states.append(passes.end(x, pass_number))
        exit_halting.append(torch.sigmoid(passes.gates[pass_number - 1](exit_states[-1]).squeeze(-1)))
    states, halting = (
        torch.stack(exit_states, dim=1),
        torch.stack(exit_halting, dim=1),
    )  # (B, R, T, D), (B, R, T)
    stopped = (torch.rand_like(halting) <= halting).cumsum(1) > 0
    exit_pass = (~stopped).sum(1).clamp(max=settings.n_repeat - 1)  # (B, T)
    drawn = states.gather(1, exit_pass[:, None, :, None].expand(-1, 1, -1, x.shape[-1])).squeeze(1)
    exits = None
    if passes.training:
        exits = Exits(states, halting, settings.ponder_lambda_p, settings.ponder_kl_div_loss_weight)
    return Hidden(states=drawn, passes=(exit_pass + 1).float().mean(), exits=exits)


POLICIES: dict[str, Callable[[Passes, Tensor], Hidden]] = {
    "fixed": fixed,
    "compact": compact,
    "masked": masked,
    "sticks": sticks,
    "ponder": ponder,
}
