"""The quickstart's table: what was trained, how fast, and how well beside a unigram baseline on the same
split.

python -m iridis.quickstart.table EXPERIMENT_FOLDER RUN_FOLDER
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from pathlib import Path

from data import open_splits
from data.unigram import unigram_loss
from files import write_json
from optim.reader import Record


def how_to_go_on(environment: Path) -> str:
    """A command that activates the environment of this program."""
    if (environment / "conda-meta").is_dir():
        activate = f"conda activate {environment}"
    else:
        script = environment / "bin" / "activate"
        activate = f"source {os.path.relpath(script) if script.is_relative_to(Path.cwd()) else script}"
    return f"to continue by hand:  {activate}"


def shown(perplexity: float | None) -> str:
    """None: of a loss that is no number, for which JSON has no word."""
    return "none, as the loss is no number" if perplexity is None else f"{perplexity:.2f}"


def main(experiment: Path, run_dir: Path) -> None:
    evaluation = json.loads((run_dir / "eval_summary_ckpt.json").read_text())
    segments = Record(experiment).segments
    rows = [json.loads(line) for line in (experiment / "metrics.jsonl").read_text().splitlines()]
    args = evaluation["args"]
    splits = open_splits(args["dataset"], args["data_dir"], args["sequence_length"], args["vocab_size"])
    n_val = splits.val.n_windows * args["sequence_length"]
    unigram = unigram_loss(splits.train.tokens, splits.val.tokens[1 : n_val + 1], args["vocab_size"])
    middle = args["n_layer"] - args["n_layer_begin"] - args["n_layer_end"]
    result = {
        "model": (
            f"LN-CoTFormer, {args['n_layer_begin']} -> {middle} x {args['n_repeat']} -> {args['n_layer_end']}"
            " layers"
        ),
        "parameters": evaluation["parameters"],
        "steps": evaluation["itr"],
        "segments": [[s["start_step"], s["end_step"], s["reason"]] for s in segments],
        "training_tokens_per_second": statistics.median(
            r["time"]["tokens_per_second"] for r in rows if r["kind"] == "train"
        ),
        "validation_tokens": evaluation["n_tokens"],
        "validation_perplexity": evaluation["val_perplexity"],
        "unigram_perplexity": math.exp(unigram),
    }
    adaptive = json.loads((run_dir / "adaptive" / "eval_summary_ckpt.json").read_text())
    result |= {"adaptive_perplexity": adaptive["val_perplexity"], "adaptive_steps": adaptive["itr"]}
    write_json(run_dir / "quickstart.json", result)
    table = [
        ("model", result["model"]),
        ("parameters", f"{result['parameters']:,}"),
        (
            "steps",
            f"{result['steps']:,}, in segments "
            + ", ".join(f"{a}-{b} ({reason})" for a, b, reason in result["segments"]),
        ),
        ("training speed", f"{result['training_tokens_per_second']:,.0f} tokens/s"),
        (
            "validation perplexity",
            f"{shown(result['validation_perplexity'])}  on {result['validation_tokens']:,} tokens",
        ),
        ("unigram perplexity", f"{result['unigram_perplexity']:.2f}  on the same tokens"),
        (
            "adaptive model",
            (
                f"perplexity {shown(result['adaptive_perplexity'])} after {result['adaptive_steps']:,} steps,"
                " all passes for every token"
            ),
        ),
        ("pictures", "fig4.png, fig5.png: perplexity at every compute budget; the routers' scores"),
        ("results", f"{run_dir}, report.md sets them beside the paper's"),
    ]
    width = max(len(name) for name, _ in table)
    line = "-" * (width + 2 + max(len(value) for _, value in table))
    print("\n".join([line, *(f"{name:<{width}}  {value}" for name, value in table), line]))
    print(how_to_go_on(Path(sys.prefix)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
