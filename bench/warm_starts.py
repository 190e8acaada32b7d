"""Networks of the tiny coalescence graph that begin with the weights of another stage, beside the same
networks trained from scratch: the same data, steps, seeds and evaluation.

    python bench/warm_starts.py TRAINED [--rates 1e-3 own] [--stages broad_w200 ...] [--output FOLDER]

TRAINED is the $RESULTS_DIR of `bash iridis/pipeline.sh coalescence --size tiny --local`. A JSON line for each
evaluation. way: `warm`, the stage itself; `scratch`, from random weights at each of --rates (own: the
stage's), everything trained, also below an adapter (--unfreeze_strategy all).
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from files import json_text, read_json
from optim.names import EVALUATION
from optim.reader import Record

STAGES = ("broad_w200", "w200_wmissing", "broad_adapter", "w200_wmissing_adapter")
KEPT = ("model", "dataset", "data_dir", "iterations", "batch_size", "acc_steps", "seed", "data_seed", "lr")
KEPT_OF_ADAPTERS = ("adapter_samples", "adapter_bottleneck", "adapter_dropout")
MEASURED = ("mse", "mse_of_train_mean", "r", "bias", "inside_2_sd")


def call(*words: object) -> None:
    """Run a program of this repository. Raises CalledProcessError."""
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, *map(str, words)], cwd=root, check=True, stdout=sys.stderr)


def evaluated(checkpoint: Path, place: Path) -> dict[str, Any]:
    """What eval.py finds, into a folder of its own."""
    call("eval.py", "--checkpoint", checkpoint, "--output_dir", place)
    found = read_json(place / EVALUATION.format("ckpt"))
    assert found is not None, "eval.py writes it or fails"
    return {name: found["all"][name] for name in MEASURED}


def from_scratch(flags: dict[str, Any], rates: list[str]) -> Iterator[dict[str, Any]]:
    """The flags of each training from scratch."""
    names = KEPT + KEPT_OF_ADAPTERS if flags["adapter"] else KEPT
    kept = {name: flags[name] for name in names}
    for rate in rates:
        lr = flags["lr"] if rate == "own" else float(rate)
        yield {**kept, "lr": lr, "adapter": flags["adapter"], "unfreeze_strategy": "all"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Warm starts beside training from scratch.")
    parser.add_argument("trained", type=Path, help="the results of the tiny graph")
    parser.add_argument("--rates", nargs="+", default=["1e-3"], help="from scratch; own: the stage's [1e-3]")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--output", type=Path, help="folder of the trainings (else they are removed)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        output = (given.output or Path(temporary)).resolve()
        for stage in given.stages:
            (warm,) = given.trained.resolve().glob(f"*/*/tiny_{stage}")
            flags = Record(warm).flags
            assert flags is not None, warm
            row = {"stage": stage, "steps": flags["iterations"], "seed": flags["seed"]}
            found = evaluated(warm, output / stage / "warm")
            print(json_text({**row, "way": "warm", "lr": flags["lr"], **found}), flush=True)
            for number, own in enumerate(from_scratch(flags, given.rates)):
                place = output / stage / f"scratch_{number}"
                place.mkdir(parents=True)
                (place / "flags.json").write_text(json_text(own))
                words = ["--results_base_folder", place, "--exp_name", "scratch"]
                call("main.py", "coalescence", "--config", place / "flags.json", *words)
                (trained,) = place.glob("*/*/scratch")
                found = evaluated(trained, place)
                print(json_text({**row, "way": "scratch", "lr": own["lr"], **found}), flush=True)


if __name__ == "__main__":
    main()
