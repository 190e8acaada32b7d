"""What this machine has, as one line of JSON; in a process of its own, as a broken driver can hang, and as
asking takes memory of the device.

    python -m bench.gpu.machine cuda
"""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

from files import json_text


def facts(device: str) -> dict[str, Any]:
    """count: of devices that the parts may use, 0 where there are none of the kind."""
    found: dict[str, Any] = {
        "device": device,
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    if device == "cpu":
        return {**found, "name": f"CPU, {platform.machine()}, {torch.get_num_threads()} threads", "count": 1}
    if not torch.cuda.is_available():
        return {**found, "name": None, "count": 0}
    card = torch.cuda.get_device_properties(0)
    return {
        **found,
        "name": card.name,
        "count": torch.cuda.device_count(),
        "memory_gib": round(card.total_memory / 2**30, 1),
        "capability": f"{card.major}.{card.minor}",
    }


if __name__ == "__main__":
    print(json_text(facts(sys.argv[1])))
