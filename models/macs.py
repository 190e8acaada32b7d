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


def _stack(
    settings: ModelSettings, name: str, pass_number: int, active: float, keys: float, seen: float, length: int
) -> float:
    """MACs of a stack in a pass over active tokens, with keys so far; length, seen: as `_layers`."""
    total = 0.0
    for depth in settings.depths(name, pass_number):
        part, whole, gate = seen, 1, 0
        if settings.is_modern:
            if seen:
                part, whole = min(settings.windows[depth], length), length
            gate = GATE_CHANNELS * settings.kv_heads * (depth in settings.value_depths)
        total += (_weights(settings) + gate) * active + 2 * settings.n_embd * active * keys * part / whole
    return total


def _layers(settings: ModelSettings, tokens: Sequence[float], length: int, seen: float) -> float:
    """MACs of all runs of layers, over so many tokens in each pass.

    seen: share of the rectangle of queries x keys that is counted (0: the products with weights alone). Of
    modern blocks it is that of windows, of as many keys as positions back, which is one less than are seen.
    """
    if not settings.variant.loop:
        return _stack(settings, "h", 1, length, length, seen, length)
    total, keys = _stack(settings, "h_begin", 1, length, length, seen, length), 0.0
    for pass_number, active in enumerate(tokens, 1):
        keys = keys + active if settings.variant.attends == "all" else length
        total += _stack(settings, "h_mid", pass_number, active, keys, seen, length)
        if settings.variant.exits_each_pass or pass_number == settings.n_repeat:
            total += _stack(settings, "h_end", pass_number, length, length, seen, length)
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


def count_macs(args: Any, sequence_length: int, length_factors: Sequence[float] | None = None) -> int:
    """MACs to process one sequence, from flags (or ModelSettings) and, for routed models, the shares that
    go on.
    """
    settings = args if isinstance(args, ModelSettings) else ModelSettings.from_args(args)
    tokens = active_tokens(settings, sequence_length, length_factors) if settings.variant.loop else []
    total = (
        _layers(settings, tokens, sequence_length, 1.0)
        + _extras(settings, tokens, sequence_length)
        + settings.n_embd * settings.table_rows
    )
    return int(total)


def training_flops_per_token(settings: ModelSettings, length: int | None = None) -> float:
    """Useful floating-point operations of forward and backward per token: causal attention only, head on
    every token. Of modern blocks the public code's count: all keys in a window, not the causal half.

    length: of the sequences; None: the longest. Routed models are counted at their factors' expectation, n
    uniform draws in order, where none are given. Weights that adapters leave as they are have no gradients;
    the adapters themselves are not counted.
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
    others = _extras(settings, tokens, length) + settings.n_embd * settings.table_rows * length
    operations = 6 * (_layers(settings, tokens, length, causal) + others)
    if settings.lora is not None:
        operations -= 2 * (_layers(settings, tokens, length, 0.0) + others)
    return operations / length
