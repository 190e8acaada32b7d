"""A trained network of coalescence times, from our checkpoints and from those of the public code.

network = load_model("broad")                   # in evaluation mode
network = load_model("exps/processed/broad/lr0.0003_bs128x6_seed2", device="cuda")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from errors import UserError
from models.coalescence.network import CoalescenceTransformer
from models.coalescence.settings import PRESETS, AdapterSettings, CoalescenceSettings
from models.weights import load_weights
from optim.coalescence import names
from optim.coalescence.public import ADAPTER, ENCODER
from optim.opening import open_checkpoint

EMBEDDING = "transformer.ote.weight"
MOST_WINDOWS = 1 << 20  # beyond which a file is taken for damaged


def load_model(given: str | Path, device: str | torch.device = "cpu") -> CoalescenceTransformer:
    """The network of a checkpoint: a file, an experiment (folder or name), or a name in the public code's
    cache, ~/.cache/cxt/checkpoints or $CXT_CHECKPOINT_CACHE. In evaluation mode, dropout and all.

    Raises UserError.
    """
    path = names.find(str(given))
    return network_of(path, open_checkpoint(path)).to(device).eval()


def network_of(path: Path, state: Mapping[str, Any]) -> CoalescenceTransformer:
    """With the weights of an opened checkpoint. Raises UserError, which names the path."""
    weights = state["model"]
    try:
        network = CoalescenceTransformer(settings_in(state))
        network.resumes_adapter = network.adapter is not None
        load_weights(network, network.begins_with(weights))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return network


def settings_in(state: Mapping[str, Any]) -> CoalescenceSettings:
    """Of the network in a checkpoint: sizes as its weights have them, the rest as its preset.

    Raises UserError where it is none of coalescence times.
    """
    weights, args = state["model"], state.get("args") or {}
    lacking = [name for name in (ENCODER, EMBEDDING) if getattr(weights.get(name), "ndim", 0) != 2]
    if lacking:
        raise UserError(f"it is of no network of coalescence times: it lacks {lacking[0]}")
    inner, n_samples = weights[ENCODER].shape
    layers = len({name.split(".")[2] for name in weights if name.startswith("transformer.h.")})
    preset = PRESETS.get(str(args.get("model")), PRESETS["broad"])
    stated, genomes = state.get("settings") or {}, state.get("genomes")
    try:
        n_windows = preset.n_windows
        if genomes:
            n_windows = -(-int(genomes["sequence_length"]) // int(genomes["window_size"]))
        n_head, width = int(stated.get("n_head", preset.n_head)), weights[EMBEDDING].shape[1]
        if n_head < 1 or width % (2 * n_head):  # the halves of a head are rotated
            raise ValueError(f"n_head {n_head} at a width of {width}")
        if not 0 < n_windows <= MOST_WINDOWS:
            raise ValueError(f"{n_windows:,} windows")
        return CoalescenceSettings(
            n_samples=n_samples,
            n_windows=n_windows,
            n_layer=layers,
            n_head=n_head,
            mask_singletons=bool(stated.get("mask_singletons", preset.mask_singletons)),
            vocab_size=len(weights[EMBEDDING]),
            expansion=inner // n_samples,
            adapter=_adapter(weights),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"what it says of itself is damaged: {type(error).__name__} {error}") from None


def _adapter(weights: Mapping[str, Any]) -> AdapterSettings | None:
    if ADAPTER not in weights:
        return None
    twice, n_samples = weights[ADAPTER].shape
    return AdapterSettings(n_samples, twice // 2)
