"""In which dtype a device computes. The meta device, which has shapes and no numbers, has no autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def computing_dtype(device: torch.device, own: torch.dtype) -> torch.dtype:
    """The autocast's, where it is on; else the tensors' own."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return own


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
