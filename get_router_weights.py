"""Router scores of an adaptive checkpoint for every token and pass: the data of Figure 5.

    python get_router_weights.py --checkpoint exps/.../NAME --output_dir results/ [--split val]
        [--cascade raw device position token]

Writes router_weights.npz (array `weights`, (N tokens, n_repeat - 1) float32, tokens in the order of the
split, except for the cascades by place: device and position) and router_weights_meta.json, with the mean of
each pass; with several cascades router_weights_<cascade>.npz and so on, from one pass over the data. Memory
does not grow with the number of tokens.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import distributed
from config.schema import Flag
from errors import UserError
from optim.cascade import CASCADES
from optim.restore import CHECKPOINT, Restored, output_folder, with_checkpoint

LOW = 0.01  # scores below it: tokens that all but skip the next pass
OWN_FLAGS = {
    "router scores": (
        CHECKPOINT,
        Flag("output_dir", str, None, "where to write (None: beside the checkpoint)"),
        Flag(
            "cascade",
            str,
            ["token"],
            "raw: scores as they are; token: the least so far of each token, which is what routing follows;"
            " device: the least so far by place in the authors' arrays, as the top-k of this device leaves"
            " them; position: the same where the top-k sorts",
            choices=CASCADES,
            many=True,
        ),
        Flag(
            "split",
            str,
            "val",
            "which tokens; of train as many as val has, unless --eval_sample_size says how many",
            choices=("val", "train"),
        ),
    )
}


@contextmanager
def growing_npz(path: Path, name: str, rows: int, columns: int) -> Iterator[Any]:
    """A float32 array in a .npz that is filled on disk and appears under its name when it is complete."""
    import numpy as np

    from files import replace_atomically, reserve

    part = path.with_name(f".{path.name}.{name}.npy.tmp")
    try:
        array = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(rows, columns))
        with part.open("r+b") as file:
            reserve(file.fileno(), part.stat().st_size, path)
        yield array
        array.flush()

        def pack(temporary: Path) -> None:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                archive.write(part, f"{name}.npy")

        replace_atomically(path, pack)
    finally:
        part.unlink(missing_ok=True)


def describe(device: Any) -> str:
    """Whose top-k it was."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def windows_wanted(sample_size: int | None, windows: Any, val: Any) -> int:
    """How many windows to read: those of `sample_size` tokens, else as many as validation has."""
    wanted = val.n_windows if sample_size is None else math.ceil(sample_size / windows.length)
    return int(min(windows.n_windows, wanted))


def write_scores(
    files: dict[str, Path], batches: Iterable[Any], n_tokens: int, n_routers: int, device: Any
) -> dict[str, dict[str, Any]]:
    """Write the scores of each cascade to its file. batches: (B, T, routers) scores, n_tokens tokens in all.
    Returns for each cascade the mean score of each router, and the share of scores below LOW.
    """
    import numpy as np

    from optim.cascade import cascade

    with ExitStack() as opened:
        arrays = {
            kind: opened.enter_context(growing_npz(path, "weights", n_tokens, n_routers))
            for kind, path in files.items()
        }
        begin, below = 0, {kind: np.zeros(n_routers) for kind in files}
        for scores in batches:
            end = begin + scores[..., 0].numel()
            for kind, array in arrays.items():
                chosen = cascade(scores.to(device) if kind == "device" else scores, kind)
                array[begin:end] = chosen.flatten(0, 1).cpu().numpy()
                below[kind] += (chosen < LOW).sum((0, 1)).cpu().numpy()
            begin = end
        return {
            kind: {
                "mean_by_pass": array.mean(axis=0, dtype=np.float64).tolist(),
                f"share_below_{LOW}": (below[kind] / begin).tolist(),
            }
            for kind, array in arrays.items()
        }


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Stream the scores of the split to disk."""
    import torch
    from tqdm import tqdm

    from data.bins import identity_of
    from files import write_json
    from optim.intervals import spread
    from optim.routers import need_routers, router_scores
    from optim.setup import autocaster

    args, path, world = restored.args, restored.path, restored.world
    if world.size > 1:
        raise UserError("get_router_weights.py runs as one process, without torchrun")
    output_dir = output_folder(own["output_dir"], path, prints=False)
    assert output_dir is not None, "scores are not printed"
    model, splits = restored.model(), restored.splits()
    need_routers(model)
    windows, data = getattr(splits, own["split"]), identity_of(splits.folder)
    chosen = spread(windows.n_windows, windows_wanted(args.eval_sample_size, windows, splits.val))
    kinds = list(dict.fromkeys(own["cascade"]))
    stems = {kind: "router_weights" + (f"_{kind}" if len(kinds) > 1 else "") for kind in kinds}
    # of an earlier call: scores must never be beside the description of others
    for stem in stems.values():
        (output_dir / f"{stem}_meta.json").unlink(missing_ok=True)
    autocast = autocaster(args.dtype, world.device)
    batches = tqdm(
        router_scores(model, windows, chosen, args.batch_size, autocast, world.device),
        total=math.ceil(chosen.size / args.batch_size),
        unit="batch",
        disable=not sys.stderr.isatty(),
    )
    files = {kind: output_dir / f"{stem}.npz" for kind, stem in stems.items()}
    n_tokens = chosen.size * windows.length
    measured = write_scores(files, batches, n_tokens, args.n_repeat - 1, world.device)
    for kind, stem in stems.items():
        means = measured[kind]["mean_by_pass"]
        write_json(
            output_dir / f"{stem}_meta.json",
            {
                "checkpoint": str(path),
                "itr": restored.state.get("itr"),
                "model": args.model,
                "cascade": kind,
                "split": own["split"],
                "data": data and data[own["split"]],
                "n_tokens": n_tokens,
                "n_repeat": args.n_repeat,
                "sequence_length": windows.length,
                **measured[kind],
                "device": describe(world.device),
                "torch": torch.__version__,
                "args": vars(args),
            },
        )
        print(
            f"{files[kind]}: {n_tokens:,} tokens, {kind} cascade, mean score after passes 1 to"
            f" {args.n_repeat - 1}: " + ", ".join(f"{mean:.3f}" for mean in means)
        )


def main(argv: list[str] | None = None) -> int:
    return with_checkpoint(
        "get_router_weights.py", "Write the router scores of an adaptive checkpoint.", OWN_FLAGS, argv, run
    )


if __name__ == "__main__":
    distributed.run_and_end(main)
