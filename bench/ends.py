"""How often the end of two processes on CPUs aborts: as the interpreter ends by itself, and as ours do
(distributed.run_and_end).

    python -m bench.ends --ends 150

Each end is that of a real process group after a few averaged gradients, on a machine kept busy by --load
other processes. Processes are forked from one that has imported torch, so that an end costs less than a
second.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from argparse import ArgumentParser
from collections import Counter

import torch

# as the gradients of several processes do; a second for each end, if it were left to them
import torch._dynamo
import torch.distributed as dist

import distributed
import distributed.world  # late elsewhere

WAYS = ("plain", "destroy", "ours")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def work(way: str) -> int:
    """A few averaged gradients, and what comes before the end."""
    world = distributed.start(None, "cpu")
    model = world.wrap(torch.nn.Linear(8, 8), may_leave_unused=False)
    for _ in range(3):
        model(torch.ones(4, 8)).sum().backward()
    if way == "ours":
        world.__exit__(None)
    elif way == "destroy":
        dist.destroy_process_group()
    return 0


def start(way: str, rank: int, port: int) -> int:
    """Fork a process that works and ends; its id.

    The child leaves by the interpreter's own end, but for ours.
    """
    child = os.fork()
    if child:
        return child
    os.environ.update(
        {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
    )
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if way == "ours":
        distributed.run_and_end(lambda: work(way))
    sys.exit(work(way))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ends", type=int, default=150, help="of each way")
    parser.add_argument("--load", type=int, default=2, help="processes that keep the machine busy")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.load)]
    codes: dict[str, Counter[int]] = {way: Counter() for way in args.ways}
    for _ in range(args.ends):
        for way in args.ways:
            port = free_port()
            for child in [start(way, rank, port) for rank in (0, 1)]:
                codes[way][os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] += 1
    for process in busy:
        process.kill()
    print(
        json.dumps(
            {"ends": args.ends, "load": args.load, **{way: dict(counts) for way, counts in codes.items()}}
        )
    )


if __name__ == "__main__":
    main()
