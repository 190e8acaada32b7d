"""Where an experiment lives: <results_base_folder>/<dataset>/<model>/<name>, the name built from what is not default."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from pathlib import Path

from config.flags import FLAGS, IDENTITY

MAX_COMPONENT = 199  # bytes of one path component; file systems allow 255, and files beside it carry suffixes
_IN_PATH = ("dataset", "model")  # folders above the name
_IN_STEM = ("lr", "batch_size", "acc_steps", "sequence_length", "seed")  # shown whatever their values


def bad_name(name: str) -> str | None:
    """Why a name cannot be a folder below another one, or None."""
    if name != name.strip() or not name or name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        return f"{name!r} must be a plain folder name"
    return None


def shorten(component: str) -> str:
    """The same text, or its beginning and a hash of the whole where it is longer than a path component should be."""
    raw = component.encode()
    if len(raw) <= MAX_COMPONENT:
        return component
    digest = hashlib.sha256(raw).hexdigest()[:12]
    return raw[: MAX_COMPONENT - 13].decode(errors="ignore") + "_" + digest


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(_text(v) for v in value)
    return str(value)


def experiment_name(args: Namespace) -> str:
    """--exp_name, or the name built from model settings that differ from their defaults."""
    if args.exp_name is not None:
        return args.exp_name
    parts = [f"lr{_text(args.lr)}_bs{args.batch_size}x{args.acc_steps}_seqlen{args.sequence_length}"]
    for name, flag in FLAGS.items():
        default = args.seed if name == "data_seed" else flag.default
        value = getattr(args, name)
        if flag.scope == IDENTITY and name not in (*_IN_PATH, *_IN_STEM) and value != default:
            parts.append(f"{name}={_text(value)}".replace("/", "-"))
    parts.append(f"seed{args.seed}")
    if args.run_prefix:
        parts.insert(0, args.run_prefix)
    return "/".join(shorten(part) for part in "_".join(parts).split("/"))


def dataset_label(dataset: str) -> str:
    """Name of a dataset in paths: itself, or the last folder of a path."""
    return Path(dataset).name


def experiment_folder(args: Namespace) -> Path:
    """Folder of the experiment; not created here."""
    return Path(args.results_base_folder) / dataset_label(args.dataset) / args.model / experiment_name(args)
