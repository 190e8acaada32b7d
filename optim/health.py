"""Memory and load of the host, temperature, power and memory of the GPU: rows of metrics.jsonl, every
--health log lines, of the main process's machine. What a machine does not tell is left out.

    {"kind": "health", "step": N, "time": {"host_load": 3.1, "gpu_temperature_c": 61.0, ...}}
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from optim.hooks import Hook, Run
from processes import peak_kib

KIND = "health"
NVIDIA_SECONDS = 5  # patience with nvidia-smi
# its name of a quantity -> ours
OF_GPU = {
    "temperature.gpu": "gpu_temperature_c",
    "power.draw": "gpu_power_watts",
    "memory.used": "gpu_memory_used_mib",
    "memory.total": "gpu_memory_mib",
    "utilization.gpu": "gpu_utilisation_percent",
}
OF_HOST = {"MemTotal": "host_memory_mib", "MemAvailable": "host_memory_free_mib"}


def host() -> dict[str, float]:
    """Of this machine, and the largest memory of this process so far."""
    found = {"peak_memory_mib": peak_kib() / 2**10}
    with suppress(OSError):
        found["host_load"] = os.getloadavg()[0]
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in OF_HOST:
                found[OF_HOST[name]] = int(value.split()[0]) / 2**10
    return found


def gpu(device: torch.device) -> dict[str, float]:
    """Of a GPU, by nvidia-smi; empty for other devices, and where there is none."""
    if device.type != "cuda":
        return {}
    number = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["nvidia-smi", f"--id={number}", f"--query-gpu={','.join(OF_GPU)}"]
    try:
        text = subprocess.run(
            [*query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return of_gpu(text)


def of_gpu(text: str) -> dict[str, float]:
    """A line of nvidia-smi; what it does not know ("[N/A]") is left out."""
    found = {}
    for name, value in zip(OF_GPU.values(), text.split(","), strict=False):
        with suppress(ValueError):
            found[name] = float(value)
    return found


class Health(Hook):
    def __init__(self, every: int = 100) -> None:
        """every: steps between two rows."""
        self.every = every

    def joined(self, run: Run) -> None:
        """As Hook.joined."""
        self.run = run

    def stepped(self, step: int, loss: float) -> None:
        """As Hook.stepped."""
        if step % self.every == 0 and self.run.world.is_main:
            facts = {**host(), **gpu(self.run.world.device)}
            self.run.reporter.row({"kind": KIND, "step": step, "time": facts}, [])
