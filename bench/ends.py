"""How often the end of two processes on CPUs aborts: as the interpreter ends by itself, and as ours do (distributed.run_and_end).

    python -m bench.ends --ends 150

Each end is that of a real process group after a few averaged gradients, on a machine kept busy by --load other processes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

PROGRAM = """
import sys
import torch
import torch.distributed as dist
import distributed

def work(leave):
    world = distributed.start(None, "cpu")
    model = world.wrap(torch.nn.Linear(8, 8))
    for step in range(3):
        model(torch.ones(4, 8)).sum().backward()
    leave(world)
    return 0

if sys.argv[1] == "ours":
    distributed.run_and_end(lambda: work(lambda world: world.__exit__(None)))
sys.exit(work(lambda world: dist.destroy_process_group() if sys.argv[1] == "destroy" else None))
"""
WAYS = ("plain", "destroy", "ours")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def end(way: str) -> list[int]:
    """Exit codes of two processes."""
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM, way], env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.DEVNULL,
                                  cwd=Path(__file__).resolve().parent.parent) for rank in ("0", "1")]
    return [process.wait() for process in processes]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ends", type=int, default=150, help="of each way")
    parser.add_argument("--load", type=int, default=2, help="processes that keep the machine busy")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.load)]
    codes: dict[str, Counter[int]] = {way: Counter() for way in args.ways}
    try:
        for _ in range(args.ends):
            for way in args.ways:
                codes[way].update(end(way))
    finally:
        for process in busy:
            process.kill()
    print(json.dumps({"ends": args.ends, "load": args.load, **{way: dict(counts) for way, counts in codes.items()}}))


if __name__ == "__main__":
    main()
