"""Seconds to make the index of packed rows for a corpus, from its bare bin, and the share of a training step
that is spent on reading rows.

    python bench/packing.py [--tokens 150000000] [--sequence_length 2048] [--n_embd 128] [--rounds 5]

Made-up documents have lengths as those of web pages: 545 tokens in the median, 1,000 in the mean. The index
has as many rows as the corpus fills. A small model is the hard case: its steps are short.
"""

from __future__ import annotations

import sys
from pathlib import Path

# not this folder, where a module would hide the standard library's tokenize
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# ruff: noqa: E402
import json
import tempfile
import time

import numpy as np
import torch

from bench.common import alternate, arguments, flags, report, training_step
from data.bins import META, open_splits
from data.packed import PackedSource, Packing

END_OF_TEXT = 50256


def write_corpus(folder: Path, tokens: int) -> int:
    """Bins of drawn tokens; returns the number of documents for training."""
    draw = np.random.default_rng(0)
    lengths = np.maximum(draw.lognormal(6.3, 1.1, tokens // 1000), 1).astype(np.int64)
    drawn = draw.integers(0, END_OF_TEXT, tokens, dtype=np.uint16)
    ends = np.cumsum(lengths + 1) - 1
    ends = ends[ends < tokens]
    drawn[ends] = END_OF_TEXT
    drawn.tofile(folder / "train.bin")
    drawn[: tokens // 100].tofile(folder / "val.bin")
    (folder / META).write_text(json.dumps({"end_of_text": END_OF_TEXT}))
    return int(ends.size)


def main() -> None:
    args = arguments(
        __doc__,
        n_embd=128,
        n_layer=2,
        batch_size=1,
        sequence_length=2048,
        rounds=5,
        tokens=150_000_000,
        buffer=1000,
    )
    settings = flags(
        model="base",
        n_embd=args.n_embd,
        n_head=max(1, args.n_embd // 64),
        n_layer=args.n_layer,
        n_layer_begin=0,
        n_layer_end=0,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
    )
    with tempfile.TemporaryDirectory() as place:
        folder, first = Path(place) / "made_up", 0
        folder.mkdir()
        documents = write_corpus(folder, args.tokens)
        splits = open_splits(str(folder), None, args.sequence_length, settings.vocab_size)
        source = PackedSource(splits, Packing(args.buffer, END_OF_TEXT, folder / "index"), data_seed=0)
        began = time.perf_counter()
        (line,) = source.prepare(args.tokens // (args.sequence_length + 1))
        made = time.perf_counter() - began
        _, step = training_step(settings, args.device, args.dtype, plain=False)

        def load() -> None:
            nonlocal first
            source.samples(0, first, args.batch_size).to(torch.device(args.device))
            first += args.batch_size

        times = alternate({"step": step, "load": load}, args.rounds, args.device)
    report(
        "packing",
        args.device,
        documents=documents,
        sequence_length=args.sequence_length,
        index=line,
        seconds={"index": made, **times},
        share=times["load"] / (times["load"] + times["step"]),
    )


if __name__ == "__main__":
    main()
