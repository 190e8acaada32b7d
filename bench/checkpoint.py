"""How long the training loop stands still for a checkpoint, against torch.save and fsync in the loop.

python bench/checkpoint.py [--n_embd 768] [--folder /scratch/me] [--rounds 5]
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import os
import statistics
import tempfile

import torch

from bench.common import arguments, flags, report, seconds
from models import make_model_from_args
from optim import checkpoint
from optim.optimizers import make_optimizer
from optim.saving import BackgroundWriter


def main() -> None:
    args = arguments(__doc__, n_embd=768, n_layer=6, rounds=5, folder=tempfile.gettempdir())
    settings = flags(n_embd=args.n_embd, n_head=max(1, args.n_embd // 64), n_layer=args.n_layer)
    model = make_model_from_args(settings).to(args.device)
    optimizer = make_optimizer(model, settings)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    times: dict[str, list[float]] = {"plain": [], "background": [], "written": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, writer = Path(folder) / "ckpt.pt", BackgroundWriter()

        def plain() -> None:
            with path.open("wb") as file:
                torch.save(state, file)
                os.fsync(file.fileno())

        def background() -> None:
            copy = checkpoint.to_cpu(state)
            writer.submit(lambda: checkpoint.save_checkpoint(path, copy))

        for _ in range(args.rounds):
            times["plain"].append(seconds(plain, args.device))
            stall = seconds(background, args.device)
            times["background"].append(stall)
            times["written"].append(stall + seconds(writer.wait, args.device))
        size = path.stat().st_size
    medians = {name: statistics.median(values) for name, values in times.items()}
    report(
        "checkpoint",
        args.device,
        bytes=size,
        seconds=medians,
        stall_ratio=medians["background"] / medians["plain"],
    )


if __name__ == "__main__":
    main()
