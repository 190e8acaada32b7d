"""Checkpoints: plain tensors and numbers in torch's zip format, never half written, checked before they are
believed.

The zip container carries a CRC-32 of every record, so a torn or flipped file is distinguished from a good
one, and `weights_only` loading keeps a hostile one from running anything.

    state = load_checkpoint(path)              # any checkpoint, also the authors' and other loops'
    path, notes = newest_valid(folder)         # what to resume from, and why not from a newer one
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct

from errors import UserError
from files import replace_atomically, sync
from optim.foreign import foreign_of
from optim.names import intermediate
from optim.peek import age, newest_first

READ_BYTES = 1 << 22
PROBE_BYTES = 1 << 20  # more than is left on a disk that a checkpoint did not find room on
# numpy objects in the authors' checkpoints: their random states are arrays of integers
NUMPY_TYPES: list[Any] = [
    (np.ndarray, "numpy.ndarray"),
    (np.dtype, "numpy.dtype"),
    type(np.dtype(np.uint32)),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
]


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint under a temporary name, sync it and rename it.

    Raises OSError where the disk is full.
    """

    def write(temporary: Path) -> None:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:
            # torch's zip writer does not say what was wrong: a full disk, a quota, a stale handle
            with open(temporary, "ab") as file:
                file.write(bytes(PROBE_BYTES))  # raises the same fault by its name
                sync(file.fileno())
            raise OSError(f"writing {path.name} failed: {first_line(error)}") from error

    replace_atomically(path, write)


def damage(path: Path) -> str | None:
    """Why a file is not an intact checkpoint, or None: every record is read and its checksum compared.

    torch's own reader must find its records too, and fields of the directory that no checksum covers must be
    as torch writes them: a record marked as a folder, say, would be read as nothing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED or record.external_attr:
                    raise zipfile.BadZipFile(f"the entry of {record.filename!r} is damaged")
                with archive.open(record) as content:
                    while content.read(READ_BYTES):
                        pass
        reader = torch._C.PyTorchFileReader(str(path))
        for name in reader.get_all_records():
            if not name.startswith("data/"):
                reader.get_record(name)
    except Exception as error:  # whatever a damaged file makes of the two readers
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """Of an error's message, or its type where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def load_checkpoint(path: Path | str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Content of a checkpoint, loaded without executing anything in it.

    Raises UserError for a file that is none.
    """
    path = Path(path)
    wrong = damage(path)
    if wrong is not None:
        raise UserError(f"{path} is not a valid checkpoint: {wrong}")
    try:
        with torch.serialization.safe_globals(NUMPY_TYPES):
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a foreign file makes of torch's reader
        raise UserError(
            f"{path} is not a checkpoint that can be loaded safely: {first_line(error)}"
        ) from None
    if isinstance(state, dict) and state and all(isinstance(value, torch.Tensor) for value in state.values()):
        state = {"model": state}  # weights alone
    kind = foreign_of(state) if isinstance(state, dict) else None
    if kind is not None:
        return kind.as_ours(state, path)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UserError(f"{path} is not a checkpoint: it holds no model")
    return state


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is intact, and a line about each newer one that is not.

    The newest is the one that holds the most steps; where a file does not say, its name counts. Raises
    UserError where there are checkpoints and none is intact: training from scratch over them would be worse.
    """
    candidates = newest_first(folder)
    notes: list[str] = []
    for path in candidates:
        wrong = damage(path)
        if wrong is None:
            return path, notes
        notes.append(f"passing over {path.name}: {wrong}")
    if candidates:
        raise UserError(
            f"no valid checkpoint in {folder} ({'; '.join(notes)}); move these files away to start afresh"
        )
    return None, notes


def prune(
    folder: Path, keep: int, protected: Collection[Path] = (), kept_steps: Collection[int] = ()
) -> None:
    """Delete all but the `keep` newest `ckpt_N.pt`, by the steps that they hold; 0 keeps all.

    Protected ones, those of kept steps, and final ones from before an extension stay, and are not counted.
    """
    for path in sorted(intermediate(folder, kept_steps), key=age, reverse=True)[keep:] if keep else []:
        if path not in protected:
            with suppress(OSError):  # one too many does no harm
                path.unlink()


def random_states(device: torch.device) -> dict[str, Any]:
    """States of this process's generators as plain tensors and numbers."""
    name, keys, place, has_gauss, gauss = np.random.get_state()  # the global generator is what is saved
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "place": int(place),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "python": {"version": version, "words": list(words), "gauss": next_gauss},
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put this process's generators where `random_states` found them."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    numpy = states["numpy"]
    np.random.set_state(
        (
            numpy["name"],
            numpy["keys"].numpy().astype(np.uint32),
            numpy["place"],
            numpy["has_gauss"],
            numpy["gauss"],
        )
    )
    python = states["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))


def to_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists whose tensors no longer share memory with the training."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_cpu(item) for item in value)
    return value
