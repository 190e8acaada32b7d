"""What eval.py measures of a network of coalescence times: how these agree with those of the test pairs."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.bins import dataset_folder
from data.genomes.store import open_genomes
from errors import UserError
from files import read_json, sha256_of
from optim.coalescence.evaluate import evaluate_times
from optim.coalescence.inference import Drawing
from optim.coalescence.load import network_of
from optim.coalescence.parts import Parts, Progress
from optim.names import EVALUATION
from optim.restore import Restored, keep_result, output_folder

COLUMNS = ("pairs", "MSE", "train mean's", "r", "bias", "inside 2 sd")


def of_times(restored: Restored, own: dict[str, Any]) -> None:
    """Of a checkpoint of the recipe coalescence. Raises UserError."""
    args, world, path = restored.args, restored.world, restored.path
    if world.size > 1:
        raise UserError(
            "a network of coalescence times is evaluated by one process: start it without torchrun"
        )
    place = output_folder(own["output_dir"], path, prints=True)
    splits = open_genomes(dataset_folder(args.dataset, args.data_dir))
    network = network_of(path, restored.state).to(world.device).eval()
    drawing, n_pairs = Drawing(own["replicates"]), own["test_pairs"] or None
    identity, name = splits.identity()["val"], EVALUATION.format(path.stem)
    if place is not None:
        say_replaced(place / name, identity)
    kept = Path(own["draws_dir"]) if own["draws_dir"] else None
    parts, folder = None, kept or place
    if folder is not None:
        arithmetic = [world.device.type, torch.__version__]
        parts = Parts(folder, [sha256_of(path), identity, asdict(drawing), n_pairs, *arithmetic])
    begin = time.monotonic()
    found = evaluate_times(
        network, splits, world.device, drawing, n_pairs, parts, lambda total: Progress(total).advanced
    )
    summary = {
        "measures": "times",  # so there is no perplexity
        **found,
        "seconds": time.monotonic() - begin,
        "itr": restored.state.get("itr"),
        "checkpoint": str(path),
        "args": vars(args),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "torch": torch.__version__,
        "dataset": str(splits.folder),
        "data": identity,
    }
    print("\n".join([f"checkpoint         {path}", *table_of(found)]), flush=True)
    keep_result(place, name, summary, "summary            ")
    if parts is not None and kept is None:
        parts.remove()


def say_replaced(path: Path, identity: Any) -> None:
    """Where a summary of other data is there, which the coming one takes the place of."""
    with suppress(UserError):  # damaged
        earlier = read_json(path)
        if earlier is not None and earlier.get("data") != identity:
            print(
                f"note: {path} is of other data, {earlier.get('dataset')}, and will be replaced: --output_dir"
                " keeps both",
                file=sys.stderr,
            )


def table_of(found: dict[str, Any]) -> list[str]:
    """Accuracy of ln TMRCA, of all test pairs and of each scenario, for a terminal."""
    rows = [("all test pairs", found["all"]), *found["scenarios"].items()]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{name:>14}" for name in COLUMNS)]
    for name, values in rows:
        numbers = [values[key] for key in ("mse", "mse_of_train_mean", "r", "bias", "inside_2_sd")]
        cells = "".join(f"{number:14.4f}" for number in numbers)
        lines.append(f"{name:<{width}}{values['pairs']:14,}{cells}")
    return lines
