"""Checkpoint files of the byte GPT's public training loop: written from ours, and read as ours.

    write(content_of(state, args), path)    # python -m models.export CKPT --format bytes --output FILE
    state = load_checkpoint(path)           # by its row in optim.foreign

They hold weights, settings, the step, the optimiser's state and the best loss so far, but neither generators
nor where the data were read. Needs no torch before it writes or reads.
"""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
from config.identity import differing, effective_batch
from config.mixture import is_mixture, parse_mixture
from config.naming import dataset_label
from config.recipe import Recipe, recipes
from errors import UserError
from files import write_atomically
from models.byte_format import (
    BYTE_GPT,
    TIED,
    is_its_file,
    its_settings,
    its_state,
    misfits,
    mismatches,
    our_name,
)
from models.settings import ModelSettings
from optim.evaluations import split_name

if TYPE_CHECKING:
    from models.transformer import Transformer

FIELDS = ("model_cfg", "train_cfg", "model_state", "step", "optimizer_state", "best_val_loss")
OPTIONAL = ("optimizer_state", "best_val_loss")
KINDS = {"model_cfg": dict, "train_cfg": dict, "model_state": dict, "optimizer_state": dict}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW


# writing


def content_of(state: Mapping[str, Any], args: Namespace) -> dict[str, Any]:
    """What the file holds of one of our checkpoints. args: all flags of its training.

    Raises UserError where the network is no byte GPT.
    """
    from models.transformer import Transformer
    from models.weights import load_weights

    settings = ModelSettings.from_args(args)
    wrong = misfits(settings)
    if wrong:
        raise UserError(f"no byte GPT has {', '.join(wrong)}: its code could not load this model")
    model = Transformer(settings)
    load_weights(model, state["model"])
    if is_its_file(state):
        return {name: state[name] for name in FIELDS if state[name] is not None}
    content = {
        "model_cfg": its_settings(settings),
        "train_cfg": _train_settings(state, args),
        "model_state": its_state(model.state_dict()),
        "step": state.get("itr") or 0,
    }
    optimizer = _its_optimizer_state(state.get("optimizer"), args, model)
    if optimizer is not None:
        content["optimizer_state"] = optimizer
    best = state.get("best") or {}
    if best.get("value") is not None and split_name(best["quantity"])[0] == "val_loss":
        content["best_val_loss"] = best["value"]
    return content


def _train_settings(state: Mapping[str, Any], args: Namespace) -> dict[str, Any]:
    """Its train_cfg, whose p_train sums to 1."""
    recipe = recipes()[BYTE_GPT]
    found = {}
    for name in recipe.sections["train"]:
        value = getattr(args, recipe.flag_named(name))
        if value is not None:
            found[name] = value
    found["p_train"] = _shares(state, args.dataset)
    found["B"] = effective_batch(vars(args))
    return found


def _shares(state: Mapping[str, Any], dataset: str) -> dict[str, float]:
    """Of the sources that were there, in the order of --dataset."""
    if not is_mixture(dataset):
        return {dataset_label(dataset): 1.0}
    given = parse_mixture(dataset)
    found = state.get("data", {}).get("mixture", {}).get("weights", given)
    return {name: found[name] for name in given if name in found}


def _its_optimizer_state(
    state: Mapping[str, Any] | None, args: Namespace, model: Transformer
) -> dict[str, Any] | None:
    """That of torch.optim.AdamW over its parameters in their order; None where ours is of another kind."""
    if state is None or args.opt != "adamw" or len(state["param_groups"]) != 1:
        return None
    group = dict(state["param_groups"][0])
    numbers = dict(zip(group.pop("param_names"), group.pop("params"), strict=True))
    names = [name for name, _ in model.named_parameters()]
    if sorted(names) != sorted(numbers):  # an objective has parameters of its own
        return None
    moments = {}
    for number, name in enumerate(names):
        if numbers[name] in state["state"]:
            moments[number] = state["state"][numbers[name]]
    group |= {"fused": None, "params": list(range(len(names)))}
    return {"state": moments, "param_groups": [group]}


def write(content: Mapping[str, Any], path: Path) -> None:
    """Replace a file as a whole; the same content gives the same bytes."""
    import torch

    buffer = io.BytesIO()  # torch writes a file's own name into it
    torch.save(dict(content), buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


# reading


def whole(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The content with None for what a file need not have. Raises UserError for one that is damaged."""
    found = {"train_cfg": {}, **dict.fromkeys(OPTIONAL), **content}
    for name, kind in KINDS.items():
        value = found[name]
        if not isinstance(value, kind) and not (value is None and name in OPTIONAL):
            raise UserError(f"{path} is no checkpoint of a byte GPT: its {name} is no {kind.__name__}")
    step, best = found["step"], found["best_val_loss"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise UserError(f"{path} is no checkpoint of a byte GPT: its step is {str(step)[:60]!r}")
    if best is not None and not isinstance(best, (int, float)):
        raise UserError(f"{path} is no checkpoint of a byte GPT: its best_val_loss is no number")
    return found


def as_ours(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint of ours with the weights, the flags and the step of such a file, and its own content.

    Its best loss is no best value of ours: it is of windows that were drawn at random. Resuming needs
    `completed`. Raises UserError for a damaged file.
    """
    found = whole(content, path)
    model = {}
    for name, tensor in found["model_state"].items():
        try:
            model[our_name(name)] = tensor
        except (KeyError, TypeError):
            raise UserError(f"{path} is of another network than the byte GPT: it has {name!r}") from None
    if "transformer.wte.weight" in model:
        embedding = model["transformer.wte.weight"]
        if not _is_same(model.setdefault(TIED, embedding), embedding):
            raise UserError(
                f"{path} is of another network than the byte GPT: its {TIED} is not tok_emb.weight"
            )
    args = vars(config.add_defaults({"recipe": BYTE_GPT, **_flags(found, path)}))
    vocabulary = {"vocabulary": {"tokenizer": "bytes"}} if args["vocab_size"] == 256 else {}
    return {**found, "model": model, "itr": found["step"], "args": args, **vocabulary}


def _is_same(a: Any, b: Any) -> bool:
    """Whether these are one tensor, or two of equal values, NaN equal to NaN."""
    import torch

    if a is b:
        return True
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or a.dtype != b.dtype:
        return False
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _flags(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The flags that its settings mean."""
    recipe: Recipe = recipes()[BYTE_GPT]
    values = {}
    for section in ("model", "train"):
        for name, value in content[f"{section}_cfg"].items():
            if name not in recipe.sections[section]:
                if section == "model":
                    raise UserError(f"{path} is of another network than the byte GPT: it has {name!r}")
                continue  # of a later loop: says nothing of the network
            if value is None:
                continue
            flag = recipe.flags[recipe.flag_named(name)]
            try:
                values[flag.name] = config.convert(flag, value)
            except ValueError as error:
                raise UserError(f"the settings of {path} cannot be used: {name} {error}") from None
    return values


# resuming


def problems(state: Mapping[str, Any], args: Namespace) -> list[str]:
    """A line for each reason why a training cannot go on from such a file: only the network must be the
    same.
    """
    settings = ModelSettings.from_args(args)
    wrong = [f"it is of a byte GPT, which has no {flag}" for flag in misfits(settings)]
    model = state["model_cfg"]
    if isinstance(model, Mapping):
        for field, loaded, current in mismatches(model, its_settings(settings)):
            wrong.append(differing(field, loaded, current))
    if state.get("optimizer_state") is None:
        wrong.append("it holds no state of an optimiser; --init_from begins a training with its weights")
    elif args.opt != "adamw":
        wrong.append(f"its optimiser is adamw, this run's {args.opt}")
    step = state["step"]
    if isinstance(step, int) and step > args.iterations:
        wrong.append(f"it is of step {step}, and --iterations {args.iterations} is less")
    return wrong


def completed(
    state: Mapping[str, Any], own: Mapping[str, Any], names: list[str], path: Path
) -> tuple[dict[str, Any], str]:
    """Of a state from `as_ours`, and what this run has itself, that which resuming needs; and a line on what
    the file lacks. names: of the network's parameters, in order. Raises UserError.
    """
    best = state["best_val_loss"]
    not_ours = "" if best is None else f"; its best loss, {best:.6g}, is of other windows than ours"
    note = (
        f"{path.name} holds neither generators nor where its data were read: after step {state['step']}"
        f" dropout and samples are those of --seed and --data_seed{not_ours}"
    )
    optimizer = _our_optimizer_state(state, own["optimizer"], names, path)
    return {**state, **own, "optimizer": optimizer}, note


def _our_optimizer_state(
    content: Mapping[str, Any], mine: Mapping[str, Any], names: list[str], path: Path
) -> dict[str, Any]:
    """Its optimiser's state as ours. content: of the file. mine: the state of this run's optimiser. names: of
    the network's parameters, in order.

    Raises UserError where they do not fit.
    """
    state = {}
    try:
        (group,) = content["optimizer_state"]["param_groups"]
        numbers = dict(zip(names, group["params"], strict=True))
        moments = content["optimizer_state"]["state"]
        begun = bool(moments) or content["step"] > 0  # before the first step there are none
        for own in mine["param_groups"]:
            for name, number in zip(own["param_names"], own["params"], strict=True):
                if begun:
                    state[number] = {key: moments[numbers[name]][key].clone() for key in MOMENTS}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"cannot resume {path}: its optimizer_state is not that of one AdamW over {len(names)} parameters"
        ) from None
    return {**mine, "state": state}
