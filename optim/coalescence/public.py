"""Checkpoints of the public code (Lightning's .ckpt), read as ours: weights under our names, and settings as
far as the file has them. Nothing of the file's is executed.

    state = read(path)          # {"model": ..., "args": ..., "itr": ...}, by optim.opening
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import UserError
from models.coalescence.settings import PRESETS
from optim.peek import peek

RECIPE = "coalescence"  # whose flags a file is read as
MARK = "pytorch-lightning_version"
ITS_MODULES = ("cxt", "__main__")  # whose classes hold the settings of its networks
OF_NETWORK, OF_BACKBONE = "model.", "backbone."
FIELDS = ("mask_singletons", "n_head")  # which the weights do not tell
ENCODER, ADAPTER = "transformer.bt2ls.proj01.weight", "adapter.fc_in.weight"


class _Settings:
    """Stands for the public code's classes of settings: takes up their fields, and does nothing."""


def is_file(path: Path) -> bool:
    """Whether a file is a checkpoint of Lightning's."""
    return path.suffix == ".ckpt" and MARK in (peek(path) or {})


def read(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is damaged, not of the public code, or would have to be executed."""
    import torch

    from optim.checkpoint import damage, first_line

    wrong = damage(path)
    if wrong is not None:
        raise UserError(f"{path} is not a valid checkpoint: {wrong}")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        known: list[Any] = [(_Settings, name) for name in names if name.split(".")[0] in ITS_MODULES]
        strange = sorted(set(names) - {name for _, name in known})
        if strange:
            raise ValueError(f"it would execute {', '.join(strange)}")
        with torch.serialization.safe_globals(known):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes of torch's reader
        raise UserError(
            f"{path} is not a checkpoint that can be loaded safely: {first_line(error)}"
        ) from None
    weights = content.get("state_dict")
    model = _our_names(weights) if isinstance(weights, dict) else {}
    if ENCODER not in model:
        raise UserError(f"{path} is a checkpoint of Lightning's, but not of a network of coalescence times")
    args, settings = _described(path, model, content.get("hyper_parameters"))
    return {"model": model, "args": args, "settings": settings, "itr": content.get("global_step")}


def _our_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Without what stands before the names of the network, and of that below an adapter."""
    found = {}
    for name, value in weights.items():
        ours = name.removeprefix(OF_NETWORK).removeprefix(OF_BACKBONE)
        if ".rotary_emb." not in ours:  # angles, which are computed
            found[ours] = value
    return found


def _described(path: Path, model: Mapping[str, Any], hyper: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flags of the recipe and fields of the network's settings, as far as the file says. The preset is the
    one that its name begins with, or the first of its size; none where there is no such.
    """
    given = hyper.get("gpt_config") if isinstance(hyper, dict) else None
    found = vars(given) if isinstance(given, _Settings) else {}
    settings: dict[str, Any] = {name: found[name] for name in FIELDS if name in found}
    args: dict[str, Any] = {"recipe": RECIPE}
    if ADAPTER in model:
        args |= {"adapter": True, "adapter_samples": model[ADAPTER].shape[1]}
        args["adapter_bottleneck"] = model[ADAPTER].shape[0] // 2
    layers = len({name.split(".")[2] for name in model if name.startswith("transformer.h.")})
    named = [name for name in sorted(PRESETS, key=len, reverse=True) if path.stem.startswith(name)]
    for name in (*named, *PRESETS):
        preset = PRESETS[name]
        is_alike = settings.get("mask_singletons", preset.mask_singletons) == preset.mask_singletons
        if is_alike and (preset.n_layer, preset.n_samples) == (layers, model[ENCODER].shape[1]):
            return {**args, "model": name}, settings
    return args, settings
