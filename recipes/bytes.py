"""Byte-level GPT on a mixture of sources: the settings of its public training loop, under its names and ours.

    python main.py bytes --config recipes/presets/bytes_smoke.json

A config file has the sections of that loop, `model` and `train`; `flags` holds whatever else main.py has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from config.flags import GROUPS
from config.mixture import RANDOM, names_of_sources
from config.old_flags import OLD_FLAGS
from config.recipe import Recipe
from config.schema import Flag
from errors import UserError
from models.byte_format import MODEL_FIELDS
from optim.tracked import main_quantity
from recipes import cotformer

# its name of a setting -> ours
TRAIN_FIELDS = {
    "seed": "seed",
    "B": "batch_size",
    "total_steps": "iterations",
    "eval_every": "eval_freq",
    "eval_steps": "eval_batches",
    "log_every": "log_freq",
    "ckpt_every": "save_checkpoint_freq",
    "base_lr": "lr",
    "warmup_steps": "warmup_steps",
    "min_lr": "min_lr",
    "grad_clip": "grad_clip",
    "p_train": "dataset",
}
DEFAULTS: dict[str, Any] = {
    "vocab_size": 256,
    "sequence_length": 256,
    "n_embd": 256,
    "n_layer": 4,
    "n_head": 4,
    "mlp_width": 1024,
    "mlp_bias": True,
    "norm_bias": True,
    "scaled_init": False,
    "dropout": 0.1,
    "seed": 42,
    "batch_size": 32,
    "acc_steps": 1,
    "iterations": 20000,
    "eval_freq": 200,
    "eval_batches": 100,
    "log_freq": 50,
    "save_checkpoint_freq": 1000,
    "scheduler": "warmup_cos",
    "lr": 3e-4,
    "warmup_steps": 200,
    "min_lr": 3e-5,
    "grad_clip": 1.0,
    "beta2": 0.95,
    "weight_decay": 0.1,
    "decayed": "all",
    "dataset": "wiki=0.784,roam=0.196,primer=0.02",
    "sampling": RANDOM,
}
# the small training of --selftest_resume, as that of cotformer
SELFTEST = {
    "dataset": "selftest=0.75,selftest_2=0.25",
    "n_layer": 2,
    "n_embd": 32,
    "mlp_width": 128,
    "sequence_length": 64,
    "batch_size": 4,
    "acc_steps": 2,
    "iterations": 40,
    "warmup_steps": 4,
    "eval_freq": 10,
    "eval_batches": 4,
    "log_freq": 1,
    "save_checkpoint_freq": 5,
}
WIKI = "wiki"  # the source whose loss the public loop tracks
DEFAULT_TRACK = "val_loss of wiki, else of the first source, else of the dataset"
PERIODIC = re.compile(r"step_(\d{7,})\.pt")


def checkpoint_name(text: str) -> str:
    """Of --resume, whose names of the newest checkpoint and of that of a step stand for ours."""
    if text == "latest.pt":
        return "auto"
    step = PERIODIC.fullmatch(text)
    return f"ckpt_{int(step[1])}.pt" if step else text


def follow(values: Mapping[str, Any]) -> dict[str, Any]:
    """--track, the loss that decides on best.pt, as DEFAULT_TRACK says."""
    try:
        names = names_of_sources(values["dataset"])
    except UserError:  # which `check` reports
        return {}
    if not values["eval_freq"]:
        return {}
    if not names:
        return {"track": main_quantity(values["objective"])}
    source = WIKI if WIKI in names else next(iter(names))
    return {"track": f"val_loss@{source}"}


def own_groups() -> Mapping[str, Sequence[Flag]]:
    """The groups of flags, with a --use_pretrained that knows these names."""
    groups = {}
    for title, flags in GROUPS.items():
        own = []
        for flag in flags:
            if flag.name == "track":
                flag = replace(flag, help=f"{flag.help}; where it is not given, {DEFAULT_TRACK}")
            if flag.name == "use_pretrained":
                flag = replace(
                    flag,
                    type=checkpoint_name,
                    help="auto or latest.pt: resume from the newest valid checkpoint of the experiment; a"
                    " file, ours or the byte GPT's own; None: start afresh",
                )
            own.append(flag)
        groups[title] = own
    return groups


RECIPE = Recipe(
    name="bytes",
    help="a byte-level GPT, on a mixture of sources",
    groups=own_groups(),
    assemble=cotformer.assemble,
    old_flags=OLD_FLAGS,
    defaults=DEFAULTS,
    spellings={**MODEL_FIELDS, **TRAIN_FIELDS, "resume": "use_pretrained"},
    sections={"model": list(MODEL_FIELDS), "train": list(TRAIN_FIELDS), "flags": ()},
    selftest=SELFTEST,
    follow=follow,
    check=cotformer.check,
    notes=cotformer.notes,
)
