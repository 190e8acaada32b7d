"""A checkpoint as the training library's folder: the same state in files that other tools read.

    model.safetensors        weights by their names
    optimizer.safetensors    PARAMETER.SLOT (m, v, ...), step, learning_rate; beside them every other tensor
                             of the checkpoint, under checkpoint/...
    metadata.json            step, the optimiser's settings, the rest of the checkpoint, SHA-256 of all

`python -m models.export --format library CHECKPOINT FOLDER` writes one. Programs name a folder by its
model.safetensors. Nothing in it is executed; needs no torch before it reads or writes tensors.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from errors import UserError
from files import json_text, read_json, sync_path, write_json

MODEL, OPTIMIZER, METADATA = "model.safetensors", "optimizer.safetensors", "metadata.json"
# torch's slot of an optimiser -> the library's; others keep their names
SLOTS = {
    "exp_avg": "m",
    "exp_avg_sq": "v",
    "momentum_buffer": "v",
    "row_var": "exp_avg_sq_row",
    "col_var": "exp_avg_sq_col",
    "variance": "exp_avg_sq",
}
LONG = 100  # numbers of a list, from which on it is stored as a tensor
BESIDE = "checkpoint"
# marks of what JSON does not have
TENSOR, INTEGERS, TUPLE, ITEMS, NUMBER = "$tensor", "$integers", "$tuple", "$items", "$number"
Tensors = dict[str, Any]


def file_of(path: Path) -> Path:
    """The file by which programs name a folder of this form; any other path is returned as it is."""
    if (path / "config.json").exists():  # a folder for transformers has a model.safetensors, too
        return path
    has_any = any((path / name).is_file() for name in (MODEL, OPTIMIZER, METADATA))
    return path / MODEL if has_any else path


def is_file(path: Path) -> bool:
    """Whether a path names a folder of this form."""
    return path.name == MODEL


# writing


def write(state: Mapping[str, Any], folder: Path, shown: Path) -> None:
    """Fill an empty folder with a checkpoint's state. shown: its path in messages.

    Raises UserError for what it cannot hold.
    """
    rest = dict(state)
    weights = {}
    for name, value in rest.pop("model").items():
        weights[name] = _tensor(value, f"the weight {name}")
    content: dict[str, Any] = {"step": state.get("itr") or 0}
    beside: Tensors = {}
    optimizer = rest.pop("optimizer", None)
    if optimizer is not None:
        content["optimizer"] = _optimizer(optimizer, content["step"], beside)
    content[BESIDE] = encoded(rest, BESIDE, beside)
    files = {MODEL: weights, OPTIMIZER: beside}
    for name, tensors in files.items():
        save_tensors(tensors, folder / name, shown / name)
    content["sha256"] = {name: _digest(folder / name) for name in files}
    content["sha256"][METADATA] = _digest_of(content)
    write_json(folder / METADATA, content)
    for name in files:
        with suppress(OSError):  # a mount without modes; safetensors lets only the owner read
            shutil.copymode(folder / METADATA, folder / name)


def save_tensors(tensors: Tensors, path: Path, shown: Path) -> None:
    """Write a safetensors file; tensors must not share memory. shown: its path in messages.

    Raises UserError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its writer reports a full disk this way
        raise UserError(f"writing {shown} failed: {error}") from None
    sync_path(path)


def _tensor(value: Any, what: str) -> Any:
    """A copy of a tensor in memory of its own. Raises UserError for anything else."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise UserError(f"a folder of this form cannot hold {what}, which is a {type(value).__name__}")
    return value.detach().clone(memory_format=torch.contiguous_format)


def _optimizer(state: Mapping[str, Any], step: int, beside: Tensors) -> dict[str, Any]:
    """Of metadata.json; the tensors go to `beside`."""
    import torch

    groups = state["param_groups"]
    used: dict[str, str] = {}
    numbers: dict[str, dict[str, Any]] = {}
    names = _names(groups)
    for number, slots in state["state"].items():
        for key, value in slots.items():
            if not isinstance(value, torch.Tensor):
                numbers.setdefault(names[number], {})[key] = encoded(value, f"optimizer/{number}", beside)
                continue
            if key not in used:
                name = SLOTS.get(key, key)
                used[key] = key if name in used.values() else name  # muon has two kinds of parameters
            beside[f"{names[number]}.{used[key]}"] = _tensor(value, f"{key} of {names[number]}")
    beside["step"] = torch.tensor(step, dtype=torch.uint64)
    beside["learning_rate"] = torch.tensor(float(groups[0]["lr"]))
    return {"slots": used, "numbers": numbers, "param_groups": encoded(groups, "optimizer", beside)}


def _names(groups: list[dict[str, Any]]) -> dict[int, str]:
    """Of parameters by their numbers; those of groups without names are their numbers."""
    found = {}
    for group in groups:
        for number, name in zip(group["params"], group.get("param_names") or group["params"], strict=True):
            found[number] = str(name)
    return found


def encoded(value: Any, place: str, beside: Tensors) -> Any:
    """A nested value as JSON; its tensors, and long lists of whole numbers, go to `beside` by their places.

    Raises UserError for an object that is neither a container, a number, a text nor a tensor.
    """
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encoded(each, f"{place}/{key}", beside) for key, each in value.items()}
        return {ITEMS: [[key, encoded(each, f"{place}/{key}", beside)] for key, each in value.items()]}
    if isinstance(value, list) and len(value) >= LONG and all(type(each) is int for each in value):
        return {INTEGERS: _put(value, place, beside)}
    if isinstance(value, list | tuple):
        parts = [encoded(each, f"{place}/{number}", beside) for number, each in enumerate(value)]
        return {TUPLE: parts} if isinstance(value, tuple) else parts
    if isinstance(value, float) and not math.isfinite(value):
        return {NUMBER: str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    return {TENSOR: _put(value, place, beside)}


def _put(value: Any, place: str, beside: Tensors) -> str:
    import torch

    if isinstance(value, list):
        value = torch.tensor(value)
    beside[place] = _tensor(value, place)
    return place


# reading


def read(folder: Path) -> dict[str, Any]:
    """The checkpoint's state; of a folder that another program has written, weights and step.

    Raises UserError where a file is missing or damaged.
    """
    content = _metadata(folder)
    sums = content.get("sha256", {})
    weights = _load(folder / MODEL, sums.get(MODEL))
    if BESIDE not in content:
        return {"model": weights, "itr": content["step"]}
    beside = _load(folder / OPTIMIZER, sums.get(OPTIMIZER))
    with _whole(folder):
        state = {**decoded(content[BESIDE], beside.__getitem__), "model": weights}
        if "optimizer" in content:
            state["optimizer"] = _optimizer_state(content["optimizer"], beside)
    return state


def peek(folder: Path) -> dict[str, Any] | None:
    """The state without tensors, None in their places; None where metadata.json cannot be read."""
    try:
        content = _metadata(folder)
        if BESIDE not in content:
            return {"itr": content["step"]}
        state = decoded(content[BESIDE], lambda place: None)
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return {**state, "model": {}, **({"optimizer": {}} if "optimizer" in content else {})}


class _whole:
    """What is wrong within metadata.json is told as damage."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METADATA

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError):
            raise UserError(f"{self.path} is damaged: {type(error).__name__} {error}") from None


def _metadata(folder: Path) -> dict[str, Any]:
    """Raises UserError."""
    path = folder / METADATA
    content = read_json(path)
    if content is None:
        raise UserError(f"{path} is missing: this is no checkpoint folder of the training library")
    step = content.get("step")
    if type(step) is not int or step < 0:
        raise UserError(f"{path} is damaged: its step is {str(step)[:60]!r}")
    sums = content.get("sha256", {})
    if not isinstance(sums, dict) or (BESIDE in content and sums.get(METADATA) != _digest_of(content)):
        raise UserError(f"{path} is damaged: it is not what was written (SHA-256)")
    return content


def _digest_of(content: Mapping[str, Any]) -> str:
    """Of metadata.json without the checksums."""
    own = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json_text(own).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path, checksum: str | None) -> Tensors:
    """Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if checksum is not None and _digest(path) != checksum:
            raise UserError(f"{path} is damaged: it is not what was written (SHA-256)")
        return load_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def decoded(value: Any, tensor: Callable[[str], Any]) -> Any:
    """What `encoded` was given. tensor: of a place."""
    if isinstance(value, list):
        return [decoded(each, tensor) for each in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensor(value[TENSOR])
    if INTEGERS in value:
        found = tensor(value[INTEGERS])
        return [] if found is None else found.tolist()
    if TUPLE in value:
        return tuple(decoded(each, tensor) for each in value[TUPLE])
    if ITEMS in value:
        return {key: decoded(each, tensor) for key, each in value[ITEMS]}
    if NUMBER in value:
        return float(value[NUMBER])
    return {key: decoded(each, tensor) for key, each in value.items()}


def _optimizer_state(content: Mapping[str, Any], beside: Tensors) -> dict[str, Any]:
    groups = decoded(content["param_groups"], beside.__getitem__)
    state: dict[int, dict[str, Any]] = {}
    for number, name in _names(groups).items():
        slots = decoded(content["numbers"].get(name, {}), beside.__getitem__)
        for key, slot in content["slots"].items():
            if f"{name}.{slot}" in beside:
                slots[key] = beside[f"{name}.{slot}"]
        if slots:
            state[number] = slots
    return {"state": state, "param_groups": groups}
