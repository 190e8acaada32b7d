"""--init_from: a training that begins with the weights of another one, under a fresh optimiser, on any data
and schedule.

What it began with is part of the experiment's identity by its content: the SHA-256 of the file is kept in
every checkpoint and in summary.json. The file itself is read once, when the experiment begins; to resume, it
need not be there any more.
"""

from __future__ import annotations

import hashlib
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.naming import weights_label
from errors import UserError

if TYPE_CHECKING:
    from models.transformer import Transformer

FLAG = "--init_from"
FROZEN = ("teacher", "reference")  # flags of files that an objective holds, and does not train
SHAPING = (
    "model",
    "block",
    "vocab_size",
    "n_layer",
    "n_embd",
    "n_head",
    "n_kv_head",
    "n_layer_begin",
    "n_layer_end",
    "n_repeat",
    "bias",
    "attn_bias",
    "mlp_bias",
    "norm_bias",
    "mlp_width",
    "positional_encoder",
    # flags that say which weights there are, and of what shape
    "depth_embedding",
    "disable_ln_mid",
    "depth_random_method",
    "depth_index",
)

# flags by which weights of the same shapes compute something else
COMPUTING = (
    "n_head",
    "positional_encoder",
    "attention_window_length",
    "window_pattern",
    "block",
    "mup_base_width",
)
OF_A_LOOP = ("n_layer_begin", "n_layer_end", "depth_index")


def describe(path: Path, given: str) -> dict[str, str]:
    """What an experiment records of its initial weights: the flag, the file and its SHA-256."""
    with path.open("rb") as file:
        return {"given": given, "file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def find(given: str, flag: str = FLAG, results: str | None = None) -> Path:
    """The checkpoint that a flag means; by its name also below `results`. Raises UserError."""
    from optim.restore import find_checkpoint

    return find_checkpoint(given, flag, results)


def file_differences(args: Namespace, then: Mapping[str, Any]) -> list[str]:
    """A line for each flag whose file holds other weights than that of a training. then: its checkpoint, or
    its summary.
    """
    frozen, results = then.get("frozen") or {}, args.results_base_folder
    lines = differences(args.init_from, then.get("initial"), FLAG, results)
    for name in FROZEN:
        lines += differences(getattr(args, name, None), frozen.get(name), f"--{name}", results)
    return lines


def differences(given: str | None, kept: Any, flag: str = FLAG, results: str | None = None) -> list[str]:
    """A line where a flag means other weights than an experiment's (`kept`, from `describe`).

    A file is compared by its content. If it is gone, or is a folder, whose newest checkpoint may have
    changed, its name is compared first. Whether only one of the two has the flag is checked with the other
    flags (config.identity). results: as `find` has it.
    """
    if given is None or not isinstance(kept, dict):
        return []
    if Path(given).is_file():
        is_same = describe(Path(given), given)["sha256"] == kept["sha256"]
    else:
        is_same = (
            weights_label(given) == weights_label(kept["given"])
            or describe(find(given, flag, results), given)["sha256"] == kept["sha256"]
        )
    return (
        []
        if is_same
        else [
            f"{flag} {given}: the training began with other weights, of {kept['file']}"
            f" ({kept['sha256'][:12]})"
        ]
    )


def load(model: Transformer, path: Path) -> dict[str, Any]:
    """Load the weights of a checkpoint, ours or the authors', into a new model. Returns everything that the
    checkpoint holds. Its adapters are merged; the model may say which weights count (models.network.Network).

    Raises UserError with a line for each kind of weight that does not fit, and one with the flags that would
    make it fit.
    """
    from models.adapters import plain_weights
    from models.weights import load_weights
    from optim.opening import open_checkpoint
    from optim.reader import Record

    state = open_checkpoint(path)
    settings = state.get("args") or (Record(path.parent, problems=[]).summary or {}).get("args")
    try:
        weights = plain_weights(state["model"], settings)
        if hasattr(model, "begins_with"):
            weights = model.begins_with(weights)
    except UserError as error:
        raise UserError(f"{FLAG} {path}: {error}") from None
    stated = state.get("settings")  # of a foreign file, for what its weights do not tell
    heads = stated.get("n_head") if isinstance(stated, Mapping) else None
    if heads is not None and heads != model.settings.n_head:
        raise UserError(f"{FLAG} {path}: it has {heads!r:.40} heads, and this model {model.settings.n_head}")
    wrong = _misfits(model, weights)
    if not wrong and isinstance(settings, Mapping):
        other = _other_function(model, settings)
        if other:
            raise UserError(f"{FLAG} {path}: it was trained with {', '.join(other)}")
    if wrong:
        raise UserError(
            "\n".join([f"{FLAG} {path} does not fit this model:", *wrong, *_flags_that_fit(model, settings)])
        )
    try:
        # computed, not trained
        load_weights(
            model, {name: value for name, value in weights.items() if not name.endswith("wpe.freqs")}
        )
    except UserError as error:
        raise UserError(f"{FLAG} {path}: {error}") from None
    return state


def _misfits(model: Transformer, state: Mapping[str, Any]) -> list[str]:
    """A line for each kind of weight that a model and a state dict do not share, or share in another shape;
    blocks of a stack are counted together.
    """
    from models.weights import WRAPPERS, may_differ

    mine: dict[str, Any] = model.state_dict()
    theirs = {WRAPPERS.sub("", name): value for name, value in state.items()}
    kinds: dict[tuple[str, str], int] = {}
    for name in sorted(mine.keys() | theirs.keys()):
        if name in mine and name in theirs:
            shapes = [tuple(getattr(side[name], "shape", ())) for side in (theirs, mine)]
            what = "" if shapes[0] == shapes[1] else f"is {shapes[0]} in the file, {shapes[1]} in this model"
        elif may_differ(name, getattr(model, "settings", None)):
            what = ""
        else:
            what = "is missing in the file" if name in mine else "is in the file only"
        if what:
            kind = re.sub(r"\.\d+\.", ".N.", name), what
            kinds[kind] = kinds.get(kind, 0) + 1
    lines = []
    for (name, what), count in kinds.items():
        blocks = f" ({count} blocks)" if count > 1 else ""
        lines.append(f"{name} {what}{blocks}")
    return lines


def _flags_that_fit(model: Transformer, settings: Any) -> list[str]:
    """A line with the network's flags that differ from the checkpoint's, if the checkpoint records them."""
    mine = vars(model.settings)
    if not isinstance(settings, Mapping):
        return []
    other = [
        f"--{name} {settings[name]} (here {mine[name]})"
        for name in SHAPING
        if name in settings and name in mine and settings[name] != mine[name]
    ]
    return [f"it was trained with {', '.join(other)}"] if other else []


def _other_function(model: Transformer, settings: Mapping[str, Any]) -> list[str]:
    """The flags of a text network by which weights that fit it computed something else, with both values.

    settings: the flags that the checkpoint records. Those that it does not have and that came later had the
    values that models had before.
    """
    from models.settings import ModelSettings

    mine = model.settings
    if not isinstance(mine, ModelSettings):
        return []
    theirs = {field.name: field.default for field in fields(ModelSettings) if field.default is not MISSING}
    theirs |= settings
    names = COMPUTING + (OF_A_LOOP if mine.variant.loop else ())
    names += ("rope_base",) if mine.positional_encoder == "rotary" else ()
    return [
        f"--{name} {theirs[name]} (here {getattr(mine, name)})"
        for name in names
        if name in theirs and theirs[name] != getattr(mine, name)
    ]
