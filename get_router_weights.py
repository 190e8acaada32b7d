"""Router scores of an adaptive checkpoint for every token and pass: the data of Figure 5.

    python get_router_weights.py --checkpoint exps/.../NAME --output_dir results/ [--cascade raw device
    position token] [--split val]

Writes router_weights.npz (array `weights`, (N tokens, n_repeat - 1) float32, tokens in the order of the
split, but for the
cascades by place: device and position) and router_weights_meta.json, with the mean of each pass; with several
cascades router_weights_<cascade>.npz and so on, from one pass over the data. Memory does not grow with the
number of tokens.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Iterator
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

    from files import replace_atomically

    part = path.with_name(f".{path.name}.{name}.npy.tmp")
    try:
        array = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(rows, columns))
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


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Stream the scores of the split to disk."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from data.bins import identity_of
    from files import write_json
    from optim.cascade import cascade
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
    wanted = (
        splits.val.n_windows
        if args.eval_sample_size is None
        else math.ceil(args.eval_sample_size / windows.length)
    )
    n = min(windows.n_windows, wanted)
    chosen = spread(windows.n_windows, n)
    kinds = list(dict.fromkeys(own["cascade"]))
    stems = {kind: "router_weights" + (f"_{kind}" if len(kinds) > 1 else "") for kind in kinds}
    # of an earlier call: scores must never stand beside another one's description
    for stem in stems.values():
        (output_dir / f"{stem}_meta.json").unlink(missing_ok=True)
    batches = router_scores(
        model, windows, chosen, args.batch_size, autocaster(args.dtype, world.device), world.device
    )
    with ExitStack() as files:
        arrays = {
            kind: files.enter_context(
                growing_npz(output_dir / f"{stem}.npz", "weights", n * windows.length, args.n_repeat - 1)
            )
            for kind, stem in stems.items()
        }
        at, below = 0, {kind: np.zeros(args.n_repeat - 1) for kind in kinds}
        for scores in tqdm(
            batches, total=math.ceil(n / args.batch_size), unit="batch", disable=not sys.stderr.isatty()
        ):
            for kind, array in arrays.items():
                read = cascade(scores.to(world.device) if kind == "device" else scores, kind)
                array[at : at + scores[..., 0].numel()] = read.flatten(0, 1).cpu().numpy()
                below[kind] += (read < LOW).sum((0, 1)).cpu().numpy()
            at += scores[..., 0].numel()
        means = {kind: array.mean(axis=0, dtype=np.float64).tolist() for kind, array in arrays.items()}
    for kind, stem in stems.items():
        write_json(
            output_dir / f"{stem}_meta.json",
            {
                "checkpoint": str(path),
                "itr": restored.state.get("itr"),
                "model": args.model,
                "cascade": kind,
                "split": own["split"],
                "data": data and data[own["split"]],
                "n_tokens": at,
                "n_repeat": args.n_repeat,
                "sequence_length": windows.length,
                "mean_by_pass": means[kind],
                f"share_below_{LOW}": (below[kind] / at).tolist(),
                "device": describe(world.device),
                "torch": torch.__version__,
                "args": vars(args),
            },
        )
        print(
            f"{output_dir / stem}.npz: {at:,} tokens, {kind} cascade, mean score after passes 1 to"
            f" {args.n_repeat - 1}: " + ", ".join(f"{mean:.3f}" for mean in means[kind])
        )


def main(argv: list[str] | None = None) -> int:
    return with_checkpoint(
        "get_router_weights.py", "Router scores of an adaptive checkpoint.", OWN_FLAGS, argv, run
    )


if __name__ == "__main__":
    distributed.run_and_end(main)
