"""Is this node fit to train? Allocate, multiply, and all-reduce with the other processes, within a time
limit.

    python -m distributed.health --report FILE [--gpus N] [--device cpu] [--distributed_backend gloo]

Started like a training (alone, or by torchrun). Each process that finds its node fit adds the node's name as
a line to FILE; a node whose lines are missing is not. Exit codes: 0 fit, 1 not.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import socket
import sys
from collections.abc import Sequence

from distributed.launch import run_and_end

LIMIT_SECONDS = 60  # takes about 2; the first use of a GPU and of a network may take 20
SIZE = 2048  # of the matrices
GPU_MIB, CPU_MIB = 2048, 256  # allocated and filled


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def multiply(device: str) -> None:
    """Fill memory and multiply matrices whose product is known. Raises RuntimeError for a wrong result."""
    import torch

    block = torch.full(
        ((GPU_MIB if device.startswith("cuda") else CPU_MIB) * 2**20,), 1, dtype=torch.uint8, device=device
    )
    if int(block[:: 2**20].sum()) != len(block) // 2**20:
        raise RuntimeError("memory does not hold what was written")
    left = torch.ones(SIZE, SIZE, device=device)
    if not bool((left @ left == SIZE).all()):
        raise RuntimeError("a matrix product is wrong")


def check(gpus: int, device: str, backend: str | None) -> str:
    """What was checked, in words. Raises whatever a sick node raises."""
    import torch

    import distributed

    if gpus and device != "cpu" and not torch.cuda.is_available():
        raise RuntimeError(
            f"{gpus} GPUs were asked for, CUDA sees none (for training on CPUs say --device cpu)"
        )
    if gpus and device != "cpu" and torch.cuda.device_count() < gpus:
        raise RuntimeError(f"{gpus} GPUs were asked for, CUDA sees {torch.cuda.device_count()}")
    with distributed.start(backend, device) as world:
        multiply(str(world.device))
        if world.size > 1:
            ones = torch.ones(1024, device=world.device)
            torch.distributed.all_reduce(ones)
            if not bool((ones == world.size).all()):
                raise RuntimeError("an all-reduce is wrong")
    return (
        torch.cuda.get_device_name(world.device)
        if world.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="health", description="Check that this node is fit to train.")
    parser.add_argument("--report", required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--distributed_backend", default=None)
    args = parser.parse_args(argv)

    # a collective that hangs never comes back to Python; this ends the process from outside, with its stack
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    try:
        words = check(args.gpus, args.device, args.distributed_backend)
    except Exception as error:  # whatever a broken driver, full memory or network makes of it
        print(
            f"health: {node_name()} is not fit: {type(error).__name__}:"
            f" {str(error).splitlines()[0] if str(error) else ''}",
            file=sys.stderr,
        )
        return 1
    with open(args.report, "a") as report:
        report.write(f"{node_name()}\n")
    print(f"health: {node_name()} is fit ({words})", flush=True)
    return 0


if __name__ == "__main__":
    run_and_end(lambda: main(sys.argv[1:]))
