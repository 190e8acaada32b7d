"""Does DPO raise the margin of pairs that it was not trained on? On sums of two numbers, from a network that
supervised fine-tuning has taught to add, in part.

    python bench/dpo.py [--seeds 1 2 3 4 5]

A JSON line for each seed, with what is measured of the held-out pairs at the beginning and at the end of dpo;
at the beginning the policy is its reference. The sft is trained on the same sums that dpo is, so the held-out
ones are new to both.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import torch

import config
from bench.arithmetic import write
from data.example_sources import PairSet, PairSource, SftSet, SftSource
from data.examples import ExampleSplits, open_examples
from data.tokenize import main as tokenize
from distributed.world import World
from models import make_model_from_args
from optim.evaluate import evaluate
from optim.fit import fit
from optim.objectives.dpo import Dpo
from optim.objectives.sft import Answers, Sft
from optim.setup import autocaster
from optim.tuning_evaluations import mean_of_pairs, measure_pairs

CPU = World(torch.device("cpu"))
MODEL = {
    "model": "lncot",
    "n_layer": 3,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 2,
    "depth_embedding": "linear_learned",
    "n_embd": 64,
    "n_head": 4,
    "sequence_length": 12,
    "vocab_size": 256,
    "batch_size": 128,
    "device": "cpu",
    "dropout": 0.0,
}
COMMON: dict[str, Any] = {"batch_size": 64, "device": "cpu", "log_freq": 0, "scheduler": "cos"}


def prepared(folder: Path, form: str) -> ExampleSplits[Any]:
    """Examples of `bench.arithmetic`, a tenth of them held out."""
    words = ["--name", form, "--data_dir", str(folder), "--input", str(folder / "lines" / f"{form}.jsonl")]
    code = tokenize([*words, "--format", form, "--tokenizer", "bytes", "--val-share", "0.1"])
    if code:
        raise SystemExit(code)
    return open_examples(folder / form, form)


def measured(objective: Dpo, pairs: PairSet, args: Any) -> dict[str, float]:
    found = measure_pairs(objective, pairs, args, CPU, args.batch_size, 0)
    assert found is not None, "nothing stops it"
    return {name: round(value, 4) for name, value in mean_of_pairs(found).items()}


def trained(seed: int, given: argparse.Namespace, chat: Any, pairs: Any) -> dict[str, Any]:
    """Of a seed: what held-out pairs and answers are before and after dpo."""
    began = time.monotonic()
    args = config.add_defaults({**MODEL, "seed": seed})
    torch.manual_seed(seed)
    network = make_model_from_args(args)
    length = args.sequence_length
    settings = {**COMMON, "seed": seed, "data_seed": seed}
    fit(Sft(network), SftSource(chat, length, seed), steps=given.sft_steps, lr=3e-3, **settings)
    answers = Answers(SftSet(chat.val, length, chat.stop))
    found = evaluate(network, answers, args.batch_size, CPU, autocaster("float32", CPU.device))
    assert found is not None, "nothing stops it"
    sft_seconds, began = time.monotonic() - began, time.monotonic()
    objective = Dpo(network, copy.deepcopy(network), given.beta)
    held_out = PairSet(pairs.val, length, pairs.stop)
    before = measured(objective, held_out, args)
    fit(objective, PairSource(pairs, length, seed), steps=given.dpo_steps, lr=given.lr, **settings)
    return {
        "seed": seed,
        "sft": {"val_loss": round(found["val_loss"], 4), "val_acc": round(found["val_acc"], 4)},
        "before": before,
        "after": measured(objective, held_out, args),
        "seconds": [round(sft_seconds), round(time.monotonic() - began)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="DPO on held-out pairs of sums.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--problems", type=int, default=5000, help="sums, a tenth of them held out [5000]")
    parser.add_argument("--sft_steps", type=int, default=1200)
    parser.add_argument("--dpo_steps", type=int, default=300)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=2e-4, help="of dpo [0.0002]")
    given = parser.parse_args()
    out = sys.stdout  # which holds JSON alone
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(sys.stderr):
        folder = Path(temporary)
        write(folder / "lines", count=given.problems)
        chat, pairs = prepared(folder, "chat"), prepared(folder, "pairs")
        for seed in given.seeds:
            print(json.dumps(trained(seed, given, chat, pairs)), file=out, flush=True)


if __name__ == "__main__":
    main()
