"""Where an experiment lives: <results_base_folder>/<dataset>/<model>/<name>, the name built from what is
not default.
"""

from __future__ import annotations

import hashlib
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.identity import CHECKPOINTS, cut_matters
from config.mixture import folder_name, is_mixture
from config.recipe import flags_of, recipe_of
from config.schema import IDENTITY

MAX_COMPONENT = 199  # bytes of one path component; file systems allow 255, and files beside it carry suffixes
_IN_PATH = ("dataset", "model")  # folders above the name
_IN_STEM = ("lr", "batch_size", "acc_steps", "sequence_length", "seed")  # shown whatever their values


def bad_name(name: str) -> str | None:
    """Why a name cannot be a folder below another one, or None."""
    if (
        name != name.strip()
        or not name
        or name.startswith("/")
        or any(part in ("", ".", "..") for part in name.split("/"))
    ):
        return f"{name!r} must be a plain folder name"
    return None


def shorten(component: str) -> str:
    """The same text, or its beginning and a hash of the whole where it is longer than a path component
    should be.
    """
    raw = component.encode()
    if len(raw) <= MAX_COMPONENT:
        return component
    digest = hashlib.sha256(raw).hexdigest()[:12]
    return raw[: MAX_COMPONENT - 13].decode(errors="ignore") + "_" + digest


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(_text(v) for v in value)
    return str(value)


def weights_label(given: str) -> str:
    """What a flag of CHECKPOINTS adds to a built name: the experiment, and the checkpoint where it names one.

    Their content is compared later.
    """
    path = Path(given)
    is_file = path.suffix in (".pt", ".pth") and path.parent.name
    return f"{path.parent.name}-{path.name}" if is_file else path.name


def experiment_name(args: Namespace) -> str:
    """--exp_name, or the name built from model settings that differ from their defaults."""
    if args.exp_name is not None:
        return args.exp_name
    parts = [f"lr{_text(args.lr)}_bs{args.batch_size}x{args.acc_steps}"]
    if "sequence_length" in args:  # a setting of texts
        parts[0] += f"_seqlen{args.sequence_length}"
    followed = recipe_of(vars(args)).follow(vars(args))
    for name, flag in flags_of(vars(args)).items():
        default = args.seed if name == "data_seed" else followed.get(name, flag.default)
        value = getattr(args, name)
        if flag.scope == IDENTITY and name not in (*_IN_PATH, *_IN_STEM) and value != default:
            text = weights_label(value) if name in CHECKPOINTS else _text(value)
            parts.append(f"{name}={text}".replace("/", "-"))
    parts.append(f"seed{args.seed}")
    if args.run_prefix:
        parts.insert(0, args.run_prefix)
    return "/".join(shorten(part) for part in "_".join(parts).split("/"))


def name_among(args: Namespace, given: Mapping[str, Any]) -> str:
    """A name for one of several trainings of a recipe that names them all alike: that, and what is given."""
    parts = [args.exp_name]
    for name, flag in flags_of(vars(args)).items():
        if name in given and flag.scope == IDENTITY and name not in _IN_PATH and given[name] != flag.default:
            text = weights_label(given[name]) if name in CHECKPOINTS else _text(given[name])
            parts.append(f"{name}={text}".replace("/", "-"))
    return shorten("_".join(parts))


def dataset_label(dataset: str) -> str:
    """Name of a dataset in paths: itself, the last folder of a path, or what a mixture is called."""
    return shorten(folder_name(dataset)) if is_mixture(dataset) else Path(dataset).name


def _cut_otherwise(folder: Path, args: Namespace) -> list[Path]:
    """Folders beside one, whose built names differ from its own only in how the batch is split into
    micro-batches; the newest first.
    """
    found, following = [], "_seqlen" if "sequence_length" in args else "_"
    for path in folder.parent.iterdir():
        cut = re.search(rf"_bs(\d+)x(\d+){following}", path.name)
        if cut is None or int(cut[1]) * int(cut[2]) != args.batch_size * args.acc_steps or not path.is_dir():
            continue
        if int(cut[1]) == args.batch_size:  # of other settings: with these, its folder would be there
            continue
        same = Namespace(**{**vars(args), "batch_size": int(cut[1]), "acc_steps": int(cut[2])})
        if Path(experiment_name(same)).name == path.name:
            found.append(path)
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def named_folder(args: Namespace) -> Path:
    """Folder of the name of an experiment, whether one with another cut of the batch is there or not."""
    return Path(args.results_base_folder) / dataset_label(args.dataset) / args.model / experiment_name(args)


def _others(args: Namespace) -> list[Path]:
    """Existing folders under a built name for another split of the same batch."""
    folder = named_folder(args)
    return (
        _cut_otherwise(folder, args)
        if args.exp_name is None and not folder.exists() and folder.parent.is_dir()
        else []
    )


def experiment_folder(args: Namespace) -> Path:
    """Folder of the experiment; not created here.

    Half the --batch_size and twice the --acc_steps is the same training, for most models: where the built
    name has no folder yet, an experiment that is there under another cut of the same batch is the one that is
    meant.
    """
    others = [] if cut_matters(vars(args)) else _others(args)
    return next(iter(others), named_folder(args))


def notes_on_cut(args: Namespace) -> list[str]:
    """A line where an experiment with another split of the same batch is resumed, or left alone. Call before
    the folder is made.
    """
    batch = f"its {args.batch_size * args.acc_steps} sequences of a step cut otherwise"
    if not cut_matters(vars(args)):
        return [
            f"going on with {path.name}: the same training, {batch}; --exp_name begins another"
            for path in _others(args)[:1]
        ]
    whom = "--fp8" if getattr(args, "fp8", False) else args.model
    return [
        f"{path.name} is another training, {batch}, which matters to {whom}; give its --batch_size and"
        " --acc_steps to go on with it"
        for path in _others(args)[:1]
    ]
