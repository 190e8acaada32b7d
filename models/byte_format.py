"""The byte GPT's own names of parameters and settings, and ours.

Its checkpoints are dicts {model_cfg, train_cfg, model_state, step[, optimizer_state][, best_val_loss]}; the
state names the tied weight twice, as tok_emb.weight and as lm_head.weight. optim/byte_file.py reads and
writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from models.settings import LATER, ModelSettings

if TYPE_CHECKING:
    from torch import Tensor

BYTE_GPT = "bytes"  # the recipe that trains it, and the form of its checkpoints
# its name of a setting -> ours
MODEL_FIELDS = {
    "V": "vocab_size",
    "T": "sequence_length",
    "C": "n_embd",
    "L": "n_layer",
    "H": "n_head",
    "d_ff": "mlp_width",
    "dropout": "dropout",
    "rope_theta": "rope_base",
}
# settings of every byte GPT, and those in which two may differ without being told by a file
FIXED = {"model": "base", "positional_encoder": "rotary", "attention_window_length": None}
BIASES = {"attn": False, "mlp": True, "norm": True}
FREE = ("scaled_init", "bias", *MODEL_FIELDS.values(), *(f"{part}_bias" for part in BIASES))
TIED = "lm_head.weight"
# its part of a parameter's name -> ours
PARTS = {
    "tok_emb": "transformer.wte",
    "ln_f": "transformer.ln_f",
    "ln1": "ln_1",
    "ln2": "ln_2",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
OUR_BLOCK = re.compile(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)")


def our_name(name: str) -> str:
    """Of one of its parameters. Raises KeyError for a name that is none."""
    if name == TIED:
        return TIED
    block = BLOCK.fullmatch(name)
    if block:
        return f"transformer.h.{block[1]}.{PARTS[block[2]]}.{block[3]}"
    part, _, kind = name.rpartition(".")
    return f"{PARTS[part]}.{kind}"


def its_name(name: str) -> str:
    """Of one of our parameters. Raises KeyError for a name that is none of a byte GPT."""
    if name == TIED:
        return TIED
    theirs = {ours: part for part, ours in PARTS.items()}
    block = OUR_BLOCK.fullmatch(name)
    if block:
        return f"blocks.{block[1]}.{theirs[block[2]]}.{block[3]}"
    part, _, kind = name.rpartition(".")
    return f"{theirs[part]}.{kind}"


def its_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of a byte GPT under its names."""
    return {its_name(name): value for name, value in state.items() if not name.endswith(".freqs")}


def its_settings(settings: ModelSettings) -> dict[str, int | float]:
    """Its model_cfg."""
    found = {its: getattr(settings, ours) for its, ours in MODEL_FIELDS.items()}
    return {**found, "d_ff": settings.inner_width}


def misfits(settings: ModelSettings) -> list[str]:
    """Each flag, with its value, that makes a network another one than the byte GPT."""
    wanted = FIXED | {field.name: field.default for field in LATER if field.name not in FREE}
    found = []
    for name, value in wanted.items():
        if getattr(settings, name) != value:
            found.append(f"--{name} {getattr(settings, name)}")
    for part, value in BIASES.items():
        if settings.has_bias(part) != value:
            found.append(f"--{part}_bias {str(not value).lower()}")
    return found


def is_its_file(content: Mapping[str, object]) -> bool:
    """Whether a checkpoint is the byte GPT's own."""
    return {"model_cfg", "model_state", "step"} <= content.keys()


def periodic_name(step: int) -> str:
    """Its name of the file of a step."""
    return f"step_{step:07d}.pt"


def mismatches(
    loaded: Mapping[str, object], current: Mapping[str, object]
) -> list[tuple[str, object, object]]:
    """(field, loaded, current) of each setting of the model in which two differ; what one lacks is None."""
    found = []
    for name in MODEL_FIELDS:
        if loaded.get(name) != current.get(name):
            found.append((name, loaded.get(name), current.get(name)))
    return found
