"""The sums of an evaluation that was interrupted: it may take longer than a job, and the next one resumes it.

kept = PartialSums(folder, "ckpt_40", model, facts_of(args, batch_size, data, device), print)
done = kept.load(sums, by_window)           # the number of batches in the sums
kept.save(done + 1, sums, by_window)
kept.remove()
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config.identity import BATCH, evaluation_of
from files import replace_atomically
from optim.names import PARTIAL
from optim.setup import autocast_dtype


def facts_of(
    args: Namespace, batch_size: int, data: Mapping[str, Any] | None, device: torch.device, sample: str = ""
) -> dict[str, Any]:
    """Everything that changes an evaluation's sums, except the weights.

    data: of both splits, from data.bins.identity_of. sample: how windows are chosen, if they are not the
    first ones.
    """
    chosen = {"sample": sample} if sample else {}
    return {
        **chosen,
        "settings": evaluation_of(vars(args), without=BATCH),
        "batch_size": batch_size,
        "data": (data or {}).get("val"),
        "precision": str(autocast_dtype(args.dtype, device)),
        "device": device.type,
        "torch": torch.__version__,
    }


def _text(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, default=str).encode()


class PartialSums:
    """A file of the main process, used only for the same weights, windows and arithmetic; otherwise the
    evaluation starts again.

    say: prints a line. advanced: called when this process has saved more than it found; not if it had to
    start again, as an evaluation that never gets further must not look like progress.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        model: nn.Module,
        facts: Mapping[str, Any],
        say: Callable[[str], object],
        advanced: Callable[[], object] = lambda: None,
    ) -> None:
        short = hashlib.sha256(_text(facts)).hexdigest()[:8]
        # another evaluation of the same checkpoint has a file of its own
        self.path = folder / PARTIAL.format(f"{name}_{short}")
        self.model, self.facts, self.say, self.advanced = model, facts, say, advanced
        self.found = 0

    @cached_property
    def key(self) -> str:
        """A hash of the facts and of every weight. It takes a second for a gigabyte, so it is computed only
        where needed.
        """
        digest = hashlib.sha256(_text(self.facts))
        for name, value in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def load(self, sums: Tensor, by_window: Tensor) -> int:
        """Fill both from the file and return the number of batches in them; 0 where there is none for this
        evaluation.
        """
        if not self.path.exists():
            return 0
        try:
            with np.load(self.path, allow_pickle=False) as file:
                key, done = str(file["key"]), int(file["done"])
                kept = [torch.from_numpy(file[name].astype(np.float64)) for name in ("sums", "by_window")]
        except KeyError:
            self.say(f"note: {self.path} is of an earlier version; the evaluation begins anew")
            return 0
        except Exception as error:  # whatever a damaged file makes of numpy's reader
            self.say(
                f"note: {self.path} cannot be read ({' '.join(str(error).split())[:80]}); the evaluation"
                " begins anew"
            )
            return 0
        if (
            key != self.key
            or [each.shape for each in kept] != [sums.shape, by_window.shape]
            or not 0 < done <= len(sums)
        ):
            return 0
        for mine, old in zip((sums, by_window), kept, strict=True):
            mine.copy_(old)
        self.say(f"the evaluation goes on after {done} of {len(sums)} batches")
        self.found = done
        return done

    def save(self, done: int, sums: Tensor, by_window: Tensor) -> None:
        """Save the sums of the first `done` batches. If that fails, the evaluation continues."""

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, key=self.key, done=done, sums=sums.numpy(), by_window=by_window.numpy())

        try:
            replace_atomically(self.path, write)
        except OSError as error:
            self.say(
                f"warning: {self.path} cannot be written ({error.strerror}): this evaluation, if it is cut"
                " short, begins anew"
            )
            return
        if self.found:
            self.advanced()

    def remove(self) -> None:
        """To be called once the results are written."""
        self.path.unlink(missing_ok=True)
