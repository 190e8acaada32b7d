"""Fine-tuning of all weights beside adapters (LoRA): what sums of two numbers a network adds that it was not
trained on, after as many steps of sft from one start, a small network that has read Python code.

    python bench/adapters.py [--seeds 1 2 3]

A JSON line for each way and seed: held-out loss (nats a token of an answer) and share of the sums that are
right to the last digit and end there, by greedy decoding. Then a line for each way with the seconds and the
memory of a step of a larger network, beside that of all weights: allocated as tensors, and resident, to which
the allocator adds what it cannot give back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import config
from bench.arithmetic import write
from bench.common import peak_growth, seconds, training_step
from data.batch import Batch
from data.bins import TokenWindows
from data.built_in import code_documents
from data.example_sources import SftSet, SftSource
from data.examples import ExampleSplits, open_examples
from data.token_source import TokenSource
from data.tokenize import main as tokenize
from models import make_model_from_args
from models.adapters import trained_parameters
from optim.fit import fit
from optim.objectives import NextToken
from optim.objectives.sft import Sft

MODEL = {
    "model": "lncot",
    "n_layer": 3,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 2,
    "depth_embedding": "linear_learned",
    "n_embd": 64,
    "n_head": 4,
    "sequence_length": 64,
    "vocab_size": 256,
    "dropout": 0.0,
    "device": "cpu",
}
LONGEST = 12  # tokens of a sum
LARGER = {**MODEL, "n_embd": 256, "sequence_length": 256, "batch_size": 8, "n_layer": 6}
COMMON: dict[str, Any] = {"device": "cpu", "log_freq": 0, "scheduler": "cos"}
START, ALL = "the start", "all weights"
# way -> --adapt, and its rate, of 0.003 and 0.01 the better one on seed 0; at 0.03 adapters of rank 16 learnt
# nothing on another seed
WAYS: dict[str, tuple[str | None, float]] = {
    ALL: (None, 3e-3),
    "lora:8": ("lora:8", 1e-2),
}


def sums(folder: Path, count: int) -> ExampleSplits[Any]:
    """Examples of `bench.arithmetic`, a tenth of them held out."""
    write(folder, count=count)
    words = ["--name", "chat", "--data_dir", str(folder), "--input", str(folder / "chat.jsonl")]
    code = tokenize([*words, "--format", "chat", "--tokenizer", "bytes", "--val-share", "0.1"])
    if code:
        raise SystemExit(code)
    return open_examples(folder / "chat", "chat")


def text(count: int) -> TokenWindows:
    """So many bytes of Python's own modules."""
    read = bytearray()
    for _, document in code_documents():
        read += document.encode() if isinstance(document, str) else document
        if len(read) >= count:
            break
    return TokenWindows(np.frombuffer(bytes(read[:count]), np.uint8).astype(np.uint16), 64, 256)


@torch.no_grad()
def measured(network: Any, held_out: SftSet) -> dict[str, float]:
    """Greedy decoding gives the answer where each of its tokens is the best guess after those before it."""
    network.eval()
    batch: Batch = held_out.batch(np.arange(len(held_out)))
    counted = batch["counted"]
    out = network(batch["inputs"], batch["targets"].masked_fill(~counted, -1))
    is_right = (out["hits"] | ~counted).all(dim=1)
    loss = out["token_losses"][counted].mean()
    return {"loss": round(float(loss), 4), "right": round(float(is_right.float().mean()), 4)}


def pretrained(seed: int, steps: int) -> Any:
    args = config.add_defaults({**MODEL, "seed": seed})
    torch.manual_seed(seed)
    network = make_model_from_args(args)
    source = TokenSource(text(2_000_000), data_seed=seed)
    fit(NextToken(network), source, steps=steps, lr=3e-3, batch_size=16, seed=seed, **COMMON)
    return network


def tuned(start: Any, way: str, seed: int, steps: int, chat: ExampleSplits[Any]) -> dict[str, Any]:
    adapt, rate = WAYS[way]
    torch.manual_seed(seed)
    network: Any = make_model_from_args(config.add_defaults({**MODEL, "adapt": adapt}))
    network.load_state_dict({**network.state_dict(), **start.state_dict()})
    source = SftSource(chat, LONGEST, seed)
    fit(Sft(network), source, steps=steps, lr=rate, batch_size=64, seed=seed, **COMMON)
    found = measured(network, SftSet(chat.val, LONGEST, chat.stop))
    return {"way": way, "seed": seed, "trained": trained_parameters(network), **found}


def costs(rounds: int) -> list[dict[str, Any]]:
    """Of a step of each way, which take turns: seconds as a median ratio to that of all weights."""
    steps = {}
    for way, (adapt, _) in WAYS.items():
        args = Namespace(**{**vars(config.add_defaults(LARGER)), "adapt": adapt})
        _, steps[way] = training_step(args, "cpu", "float32", plain=False)
        steps[way]()
    times: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(rounds):
        for way, step in steps.items():
            times[way].append(seconds(step, "cpu"))
    rows = []
    for way, step in steps.items():
        ratios = [mine / full for mine, full in zip(times[way], times[ALL], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "way": way,
                "ratio": round(statistics.median(ratios), 3),
                "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
                "seconds": round(statistics.median(times[way]), 3),
                "allocated_mib": round(peak_allocated(step)),
                "resident_mib": round(peak_growth(step)),
            }
        )
    return rows


def peak_allocated(work: Callable[[], object]) -> float:
    """Most that `work` holds at once of what it allocates as tensors, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    assert watched.profiler is not None
    found = watched.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in found if event.name() == "[memory]")
    return max(accumulate(change for _, change in changes)) / 2**20


def state_mib(way: str) -> float:
    """Of what is kept between steps beside the weights: two numbers of AdamW for each that is trained, and in
    a step its gradient.
    """
    args = Namespace(**{**vars(config.add_defaults(LARGER)), "adapt": WAYS[way][0]})
    return 3 * 4 * trained_parameters(make_model_from_args(args)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Adapters beside fine-tuning of all weights.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--problems", type=int, default=5000, help="sums, a tenth of them held out [5000]")
    parser.add_argument("--text_steps", type=int, default=600, help="of the start [600]")
    parser.add_argument("--steps", type=int, default=1000, help="of sft [1000]")
    parser.add_argument("--lr", type=float, help="instead of the rates of WAYS")
    parser.add_argument(
        "--rounds", type=int, default=15, help="steps of each way that are timed; 0: none [15]"
    )
    given = parser.parse_args()
    if given.lr is not None:
        for way, (adapt, _) in WAYS.items():
            WAYS[way] = adapt, given.lr
    out = sys.stdout  # which holds JSON alone

    def show(row: dict[str, Any]) -> None:
        print(json.dumps(row), file=out, flush=True)

    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(sys.stderr):
        chat = sums(Path(temporary), given.problems) if given.seeds else None
        for seed in given.seeds:
            assert chat is not None, "prepared where there are seeds"
            start = pretrained(seed, given.text_steps)
            show({"way": START, "seed": seed, **measured(start, SftSet(chat.val, LONGEST, chat.stop))})
            for way in given.ways:
                show(tuned(start, way, seed, given.steps, chat))
        for row in costs(given.rounds) if given.rounds else []:
            show({**row, "state_mib": round(state_mib(row["way"]), 1)})


if __name__ == "__main__":
    main()
