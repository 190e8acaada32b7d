"""Perplexity of a checkpoint over the validation split.

    python eval.py --checkpoint exps/stdlib/cotformer_full_depth_lnmid_depthemb/NAME   # its newest checkpoint
    python eval.py --checkpoint exps/.../ckpt_40000.pt --eval_seq_length 128
    python eval.py --checkpoint exps/.../ckpt_40000.pt --eval_length_factor 0.8 0.5 0.3 0.1

The settings are those that the checkpoint was trained with; any flag given overrides one. Also reads
checkpoints of the authors' implementation. Writes eval_summary_<checkpoint's name>.json, and the losses of
all windows beside it (.npz), by which two models are compared in pairs (python -m report compare A B).
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distributed
from config.schema import Flag
from optim.names import EVALUATION, window_losses_of
from optim.restore import CHECKPOINT, Restored, keep_result, output_folder, with_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optim.partial import PartialSums

OWN_FLAGS = {
    "evaluation of a checkpoint": (
        CHECKPOINT,
        Flag("output_dir", str, None, "where to write the summary (None: beside the checkpoint)"),
    )
}
ROUTING = {
    "everyone": "every token makes all passes",
    "capacity": (
        "by capacity: the choice of tokens looks at later ones, so this is not a causal model's perplexity"
        " (--routing threshold is)"
    ),
    "threshold": "by threshold: causal",
}


def intervals(result: dict[str, Any], documents: NDArray[np.int64] | None) -> dict[str, Any]:
    """Standard errors of the mean loss and accuracy of one model, and 95% intervals; None for a single
    window.
    """
    from optim.evaluate import perplexity
    from optim.intervals import interval

    losses, accuracies = (result[name].numpy() for name in ("window_losses", "window_accuracies"))
    loss, accuracy = interval(losses, documents), interval(accuracies, documents)
    if loss is None or accuracy is None:
        return dict.fromkeys(
            (
                "val_loss_std",
                "val_loss_sem",
                "val_acc_sem",
                "val_loss_ci95",
                "val_perplexity_ci95",
                "interval",
            )
        )
    half = loss.high - loss.mean
    low, high = result["val_loss"] - half, result["val_loss"] + half
    return {
        "val_loss_std": float(losses.std(ddof=1)),
        "val_loss_sem": loss.sem,
        "val_acc_sem": accuracy.sem,
        "val_loss_ci95": [low, high],
        "val_perplexity_ci95": [perplexity(low), perplexity(high)],
        "interval": {
            "clusters": loss.clusters.kind,
            "n_clusters": loss.clusters.count,
            "n_windows": losses.size,
            "by": loss.clusters.words(),
        },
    }


def bits_per_byte(splits: Any, loss: float, chosen: NDArray[np.int64], vocab_size: int) -> float | None:
    """A mean loss in nats a token over some windows of the split, in bits per byte of their text; None where
    the tokenizer is not known.
    """
    from data.sizes import token_sizes

    sizes = token_sizes(splits.meta, vocab_size)
    if sizes is None:
        return None
    length, n_tokens = splits.val.length, chosen.size * splits.val.length
    n_bytes = sum(
        int(sizes[splits.val.tokens[window * length + 1 : (window + 1) * length + 1]].sum())
        for window in chosen.tolist()
    )
    return loss * n_tokens / math.log(2) / n_bytes if n_bytes else None


def routing_of(args: Namespace) -> str | None:
    """How a routed model chose its tokens; None for the others."""
    from models.variants import VARIANTS

    if not VARIANTS[args.model].routes:
        return None
    return (
        "everyone"
        if args.routing == "capacity" and min(args.eval_length_factor or [1.0]) == 1
        else args.routing
    )


def partial_sums(restored: Restored, model: Any, data: Any, place: Path | None) -> PartialSums | None:
    """The sums of an interrupted call: beside the checkpoint, where each run of a job finds them, else with
    the results.

    None where neither folder can be written.
    """
    from optim.intervals import SAMPLE
    from optim.partial import PartialSums, facts_of

    beside = restored.path.parent
    folder = beside if os.access(beside, os.W_OK) else place
    facts = facts_of(restored.args, restored.args.batch_size, data, restored.world.device, SAMPLE)
    say = functools.partial(print, file=sys.stderr)
    return PartialSums(folder, restored.path.stem, model, facts, say) if folder else None


def timed_evaluation(
    restored: Restored, model: Any, val: Any, chosen: NDArray[np.int64], kept: PartialSums | None
) -> tuple[dict[str, Any], float]:
    """The result of `evaluate`, and the seconds that it took; the main process shows a bar on a terminal."""
    from tqdm import tqdm

    from optim.evaluate import evaluate
    from optim.setup import autocaster

    args, world = restored.args, restored.world
    batches = math.ceil(chosen.size / args.batch_size)
    begin = time.monotonic()
    with tqdm(
        total=batches, unit="batch", desc="evaluating", disable=not (world.is_main and sys.stderr.isatty())
    ) as bar:
        result = evaluate(
            model,
            val,
            args.batch_size,
            world,
            autocaster(args.dtype, world.device),
            chosen,
            progress=lambda done: bar.update(done - bar.n),
            kept=kept,
        )
    assert result is not None, "nothing asked this evaluation to stop"
    return result, time.monotonic() - begin


def printed_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for a terminal."""
    ci95, bits = summary["val_perplexity_ci95"], summary["bits_per_byte"]
    if ci95 is None:
        spread = "one window: no interval"
    else:
        spread = f"95% interval {ci95[0]:.4f} to {ci95[1]:.4f}, by {summary['interval']['by']}"
    bits_text = "unknown: the dataset names no tokenizer that is here" if bits is None else f"{bits:.4f}"
    lines = [
        f"checkpoint         {summary['checkpoint']}",
        f"validation loss    {summary['val_loss']:.7f} nats a token",
        f"perplexity         {summary['val_perplexity']:.4f}  ({spread})",
        f"bits per byte      {bits_text}",
        f"accuracy           {summary['val_acc']:.7f}",
        f"average depth      {summary['average_depth']:.4f} layers",
        f"tokens             {summary['n_tokens']:,} in {summary['n_batches']} batches,"
        f" {summary['tokens_per_second']:,.0f} tokens/s",
    ]
    if summary["routing"]:
        lines.append(f"routing            {ROUTING[summary['routing']]}")
    return lines


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Evaluate and write the summary."""
    import torch

    from data.bins import identity_of
    from optim.evaluate import perplexity, windows_to_read
    from optim.intervals import documents_of
    from optim.window_losses import WindowLosses, save_windows

    args, path, world = restored.args, restored.path, restored.world
    place = world.on_main(lambda: output_folder(own["output_dir"], path, prints=True))
    splits, model = restored.splits(), restored.model()
    data = identity_of(splits.folder)
    kept = partial_sums(restored, model, data, place)
    chosen = windows_to_read(args, splits.val.n_windows)
    result, seconds = timed_evaluation(restored, model, splits.val, chosen, kept)
    if not world.is_main:
        return
    documents = documents_of(splits.val, chosen, splits.meta)
    summary = {
        "val_loss": result["val_loss"],
        "val_perplexity": perplexity(result["val_loss"]),
        "val_acc": result["val_acc"],
        "average_depth": result["average_depth"],
        "n_batches": result["n_batches"],
        "n_tokens": result["n_tokens"],
        **intervals(result, documents),
        "val_loss_batch_mean": result["val_loss_batch_mean"],
        "val_acc_batch_mean": result["val_acc_batch_mean"],
        "bits_per_byte": bits_per_byte(splits, result["val_loss"], chosen, args.vocab_size),
        "routing": routing_of(args),
        "tokens_per_second": result["n_tokens"] / seconds,
        "itr": restored.state.get("itr"),
        "checkpoint": str(path),
        "args": vars(args),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "data": data and data["val"],
    }
    print("\n".join(printed_lines(summary)), flush=True)
    if place:
        losses, accuracies = result["window_losses"].numpy(), result["window_accuracies"].numpy()
        save_windows(
            place / window_losses_of(EVALUATION.format(path.stem)),
            WindowLosses(chosen, losses, accuracies, documents),
        )
    keep_result(place, EVALUATION.format(path.stem), summary, "summary            ")
    if kept:
        kept.remove()


def main(argv: list[str] | None = None) -> int:
    return with_checkpoint(
        "eval.py", "Measure the perplexity of a checkpoint on the validation split.", OWN_FLAGS, argv, run
    )


if __name__ == "__main__":
    distributed.run_and_end(main)
