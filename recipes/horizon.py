"""How a modern GPT is trained, of its depth alone: width, batch, number of steps, rates and weight decay.

Arithmetic of the public code (karpathy/nanochat, February 2026): a batch that grows with the tokens of the
training, rates with the root of the batch, and a decay that falls with the tokens. All of it follows the
ratio of tokens to parameters, also where steps or floating-point operations set the length. Of a model that
repeats layers each parameter counts once; its floating-point operations are those of all runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from errors import UserError
from models.settings import GATE_CHANNELS, ModelSettings

# where rates and decay hold as they are given: tokens of a step, depth, width
BASE_BATCH, BASE_DEPTH, BASE_WIDTH = 2**19, 12, 768
BATCH_EXPONENT = 0.383  # of the tokens of a training (Bergsma et al. 2025)


def width_and_heads(depth: int, aspect_ratio: int, head_dim: int) -> tuple[int, int]:
    """depth x aspect_ratio, rounded up to whole heads."""
    heads = math.ceil(depth * aspect_ratio / head_dim)
    return heads * head_dim, heads


def parameter_counts(settings: ModelSettings) -> dict[str, int]:
    """Parameters of a network of modern blocks by kind; tables and head have padded rows. Routers, gates that
    halt and the depth embedding are not counted.
    """
    width, layers, heads = settings.n_embd, settings.n_layer, settings.kv_heads
    kv_width, owners = heads * settings.head_width, len(settings.value_layers)
    table = settings.table_rows * width
    counts = {
        "wte": table,
        "value_embeds": owners * settings.table_rows * kv_width,
        "lm_head": table,
        "transformer_matrices": layers * 2 * width * (width + kv_width + settings.inner_width)
        + owners * heads * GATE_CHANNELS,
        "scalars": 2 * len(settings.layer_of),
    }
    return {**counts, "total": sum(counts.values())}


def scaling_parameters(settings: ModelSettings) -> int:
    """The parameters that the horizon is a multiple of: matrices of the layers, and the head."""
    counts = parameter_counts(settings)
    return counts["transformer_matrices"] + counts["lm_head"]


def flops_per_token(settings: ModelSettings) -> int:
    """Of a forward and backward pass, as models.macs counts them."""
    from models.macs import training_flops_per_token  # needs torch, and --help does not

    return round(training_flops_per_token(settings))


@dataclass(frozen=True)
class Horizon:
    """target: tokens that the ratio asks for. batch: tokens of a step. steps: None where nothing sets them.

    rate_scale, decay_scale, width_scale: factors of all rates, of the weight decay, and of the rates of
    embeddings and head.
    """

    target: int
    base_target: float
    batch: int
    steps: int | None
    rate_scale: float
    decay_scale: float
    width_scale: float


def horizon(
    settings: ModelSettings,
    aspect_ratio: int,
    head_dim: int,
    ratio: float,
    batch: int = -1,
    steps: int = -1,
    flops: float = -1.0,
) -> Horizon:
    """How long and with what batch to train a network; the first of steps, flops and ratio that is positive
    sets the length. ratio: tokens for each scaling parameter. batch: tokens of a step, -1: chosen.

    Raises UserError for a ratio that is 0, or that small, and for a batch of 0.
    """
    if ratio == 0:
        raise UserError(
            "--target-param-data-ratio 0: batch, rates and weight decay follow the ratio also where another"
            " flag sets the length; give -1 to set no length by it"
        )
    if batch == 0:
        raise UserError("--total-batch-size 0: give the tokens of one step, or -1 to have them chosen")
    width, heads = width_and_heads(BASE_DEPTH, aspect_ratio, head_dim)
    base = replace(settings, model="base", n_layer=BASE_DEPTH, n_embd=width, n_head=heads, n_kv_head=None)
    target, base_target = int(ratio * scaling_parameters(settings)), ratio * scaling_parameters(base)
    if target == 0:
        raise UserError(f"--target-param-data-ratio {ratio} is less than one token for the whole network")
    growth = target / base_target
    if batch == -1:
        batch = 2 ** round(math.log2(BASE_BATCH * growth**BATCH_EXPONENT))
    rate_scale = (batch / BASE_BATCH) ** 0.5
    return Horizon(
        target=target,
        base_target=base_target,
        batch=batch,
        steps=_steps(settings, target, batch, steps, flops),
        rate_scale=rate_scale,
        decay_scale=rate_scale / growth,
        width_scale=(settings.n_embd / BASE_WIDTH) ** -0.5,
    )


def _steps(settings: ModelSettings, target: int, batch: int, steps: int, flops: float) -> int | None:
    if steps > 0:
        return steps
    if flops > 0:
        return round(flops / (flops_per_token(settings) * batch))
    return target // batch if target > 0 else None
