"""Multiply-accumulates of a forward pass in closed form, and the floating-point work that is of use.

    count_macs(args, sequence_length=256, length_factors=[0.9, 0.6, 0.3, 0.1])

The authors' accounting, to the last unit: every Linear, Q.K and attention.V over the full rectangle of
queries x keys so far, the routers, and the output head once, on the last position only. In their masked model
only active tokens are counted as queries and keys' makers, but all tokens are attended to and scored by the
routers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.routing import capacities, tokens_kept
from models.settings import GATE_CHANNELS, ModelSettings


def active_tokens(
    settings: ModelSettings, sequence_length: int, length_factors: Sequence[float] | None
) -> list[int]:
    """Tokens that take part in each pass."""
    counts = [sequence_length]
    if not settings.variant.routes:
        return counts * settings.n_repeat
    for share in capacities(list(length_factors or [1.0] * (settings.n_repeat - 1))):
        counts.append(tokens_kept(share, counts[-1], settings.variant.rounds_in_float32))
    return counts


def _weights(settings: ModelSettings) -> int:
    """Of the matrices of a layer."""
    kv_width = settings.kv_heads * settings.head_width
    return 2 * settings.n_embd * (settings.n_embd + kv_width + settings.inner_width)


def _middle(settings: ModelSettings, tokens: Sequence[float], length: int, seen: float) -> float:
    """MACs of the middle layers (and the end layers of models with an exit at each pass) over all passes.

    seen: share of the rectangle of queries x keys that is counted.
    """
    width, (_, middle, end) = settings.n_embd, settings.stack_sizes
    layers = middle + (end if settings.variant.exits_each_pass else 0)
    total, keys = 0.0, 0.0
    for active in tokens:
        keys = keys + active if settings.variant.attends == "all" else length
        total += layers * (_weights(settings) * active + 2 * width * active * keys * seen)
    return total


def _extras(settings: ModelSettings, tokens: Sequence[float], length: int) -> float:
    """Routers, gates and exits."""
    width, variant = settings.n_embd, settings.variant
    if variant.variable_tokens:
        return width * sum(tokens[:-1])
    if variant.routes:
        return width * length * (settings.n_repeat - 1)
    per_token = 0
    if variant.breaks_sticks:
        per_token = width**2 + 2 * width
    elif variant.exits_each_pass:
        per_token = width
    return per_token * length * settings.n_repeat


def _modern(settings: ModelSettings, length: int) -> int:
    """MACs of the layers of a model of modern blocks without a loop; of windows as many keys as positions
    back, which is one less than are seen.
    """
    gates = len(settings.value_layers) * GATE_CHANNELS * settings.kv_heads
    keys = sum(min(window, length) for window in settings.windows)
    return length * (settings.n_layer * _weights(settings) + gates + 2 * settings.n_embd * keys)


def _outside(settings: ModelSettings, length: int, seen: float) -> float:
    """Layers that run once."""
    if settings.is_modern:
        return _modern(settings, length)
    begin, _, end = settings.stack_sizes
    layers = begin + (0 if settings.variant.exits_each_pass else end)
    return layers * (_weights(settings) * length + 2 * settings.n_embd * length * length * seen)


def count_macs(args: Any, sequence_length: int, length_factors: Sequence[float] | None = None) -> int:
    """MACs to process one sequence, from flags (or ModelSettings) and, for routed models, the shares that
    go on.
    """
    settings = args if isinstance(args, ModelSettings) else ModelSettings.from_args(args)
    tokens = active_tokens(settings, sequence_length, length_factors) if settings.variant.loop else []
    total = (
        _outside(settings, sequence_length, 1.0)
        + _middle(settings, tokens, sequence_length, 1.0)
        + _extras(settings, tokens, sequence_length)
        + settings.n_embd * settings.table_rows
    )
    return int(total)


def training_flops_per_token(settings: ModelSettings, length: int | None = None) -> float:
    """Useful floating-point operations of forward and backward per token: causal attention only, head on
    every token. Of modern blocks the public code's count: all keys in a window, not the causal half.

    length: of the sequences; None: the longest. Routed models are counted at their factors' expectation, n
    uniform draws in order, where none are given.
    """
    length, n = length or settings.sequence_length, settings.n_repeat - 1
    tokens: list[float] = []
    if settings.variant.loop:
        shares = settings.training_length_factor
        if not shares and settings.variant.routes:
            shares = tuple((n - i) / (n + 1) for i in range(n))
        shares = shares or (1.0,) * n
        tokens = [float(length), *(share * length for share in shares)]
    causal = (length + 1) / (2 * length)
    macs = (
        _outside(settings, length, causal)
        + _middle(settings, tokens, length, causal)
        + _extras(settings, tokens, length)
        + settings.n_embd * settings.table_rows * length
    )
    return 6 * macs / length
