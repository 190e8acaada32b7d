"""Perplexity of a checkpoint over the validation split.

    python eval.py --checkpoint exps/stdlib/cotformer_full_depth_lnmid_depthemb/NAME   # its newest checkpoint
    python eval.py --checkpoint exps/.../ckpt_40000.pt --eval_seq_length 128
    python eval.py --checkpoint exps/.../ckpt_40000.pt --eval_length_factor 0.8 0.5 0.3 0.1
    python eval.py --checkpoint exps/.../ckpt_40000.pt --core_data eval_bundle.zip      # and CORE

The settings are those that the checkpoint was trained with; any flag given overrides one. A network that was
fine-tuned (--objective sft, dpo, grpo) is measured on the validation examples; with --objective next_token
and a --dataset of text, on that. Also reads checkpoints of the authors' implementation. Writes
eval_summary_<checkpoint's name>.json, and the losses of all windows beside it (.npz), by which two models are
compared in pairs (python -m report compare A B). CORE's tasks are in a table beside it, too (_core.csv).
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distributed
from config.groups.objective import DPO, GRPO, SFT
from config.schema import PATH, Flag
from files import write_atomically
from optim.names import EVALUATION, core_of, window_losses_of
from optim.restore import CHECKPOINT, TOKENIZER, Restored, keep_result, output_folder, with_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from data.batch import EvalSet
    from data.bins import Splits
    from data.text import TextData
    from optim.core_metric import Core, Result
    from optim.partial import PartialSums

OWN_FLAGS = {
    "evaluation of a checkpoint": (
        CHECKPOINT,
        TOKENIZER,
        Flag("output_dir", str, None, "where to write the summary (None: beside the checkpoint)"),
    ),
    "evaluation of coalescence times": (
        Flag("replicates", int, 15, "draws of each test pair", low=1),
        Flag("test_pairs", int, 200, "test pairs, evenly spread; 0 = all of them", low=0),
        Flag(
            "draws_dir",
            str,
            None,
            "folder for the draws so far, by which an interrupted call goes on; they stay there when it ends"
            " (None: with the results, and only until it ends)",
            names=PATH,
        ),
    ),
}
# objectives, and recipes without any, whose networks are measured by something else than the perplexity of
# text -> the module and the function that do, of what is restored and OWN_FLAGS
OTHERS = {
    "coalescence": ("optim.coalescence.results", "of_times"),
    SFT: ("optim.tuning_results", "of_answers"),
    DPO: ("optim.tuning_results", "of_pairs"),
    GRPO: ("optim.tuning_results", "of_prompts"),
}
ROUTING = {
    "everyone": "every token makes all passes",
    "capacity": (
        "by capacity: the choice of tokens looks at later ones, so this is not a causal model's perplexity"
        " (--routing threshold is)"
    ),
    "threshold": "by threshold: causal",
}


def intervals(
    mean: float,
    losses: NDArray[np.float64],
    accuracies: NDArray[np.float64],
    documents: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """Standard errors of the mean loss and accuracy of one model, and 95% intervals; None for a single
    window.
    """
    from optim.evaluate import perplexity
    from optim.intervals import interval

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
    low, high = mean - half, mean + half
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


@dataclass(frozen=True)
class Read:
    """What an evaluation reads of one source: windows of its validation split, by number. documents: of each
    of them, if meta.json tells where one ends.
    """

    name: str
    splits: Splits
    chosen: NDArray[np.int64]
    documents: NDArray[np.int64] | None

    def summary(self, losses: NDArray[np.float64], accuracies: NDArray[np.float64]) -> dict[str, Any]:
        """Of one source of several. losses, accuracies: of its windows."""
        from optim.evaluate import perplexity

        loss = float(losses.mean())
        return {
            "val_loss": loss,
            "val_perplexity": perplexity(loss),
            "val_acc": float(accuracies.mean()),
            "n_tokens": losses.size * self.splits.val.length,
            **intervals(loss, losses, accuracies, self.documents),
        }


def reads_of(data: TextData, args: Namespace) -> list[Read]:
    from optim.evaluate import windows_to_read
    from optim.intervals import documents_of

    found = []
    for name, splits in data.parts.items():
        chosen = windows_to_read(args, splits.val.n_windows)
        documents = documents_of(splits.val, chosen, splits.meta)
        found.append(Read(name, splits, chosen, documents))
    return found


def windows_of(reads: Sequence[Read]) -> tuple[EvalSet, NDArray[np.int64]]:
    """What is read as one set, and the numbers of the windows in it: of a mixture, those of all sources, one
    after the other.
    """
    import numpy as np

    from data.text import Joined

    if len(reads) == 1:
        return reads[0].splits.val, reads[0].chosen
    joined = Joined({read.name: read.splits.val for read in reads})
    numbers = [begin + read.chosen for read, (_, begin, _) in zip(reads, joined.ranges(), strict=True)]
    return joined, np.concatenate(numbers)


def validation_identity(data: TextData) -> Any:
    """What identifies the validation text, as `data.bins.identity_of` has a split."""
    from data.bins import identity_of
    from data.sources import joined_identity

    if not data.is_mixture:
        found = identity_of(data.first.folder)
        return found and found["val"]
    return joined_identity({name: data.identities[name]["val"] for name in data.parts})


def documents_in(reads: Sequence[Read]) -> NDArray[np.int64] | None:
    """The document of every window that is read, counted through all sources."""
    import numpy as np

    parts, first = [], 0
    for read in reads:
        if read.documents is None:
            return None
        parts.append(read.documents + first)
        first = int(parts[-1].max(initial=first)) + 1
    return np.concatenate(parts)


def bits_of(loss: float, n_tokens: int, texts: Tensor) -> float | None:
    """Bits per byte of some windows, by their mean loss and texts (windows, 2); None where they have none, or
    the tokenizer is not known (windows, 0).
    """
    from data.sizes import bits_per_byte

    return bits_per_byte(loss, n_tokens, texts) if texts.any() else None


def of_sources(result: dict[str, Any], reads: Sequence[Read]) -> dict[str, Any]:
    """The summary of each source of a mixture."""
    losses, accuracies = (result[name].numpy() for name in ("window_losses", "window_accuracies"))
    found, first = {}, 0
    for read in reads:
        mine = slice(first, first + read.chosen.size)
        first += read.chosen.size
        summary = read.summary(losses[mine], accuracies[mine])
        bits = bits_of(summary["val_loss"], summary["n_tokens"], result["window_texts"][mine])
        found[read.name] = {**summary, "bits_per_byte": bits}
    return found


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
    restored: Restored,
    model: Any,
    windows: EvalSet,
    chosen: NDArray[np.int64],
    kept: PartialSums | None,
    sizes: NDArray[np.int64] | None,
) -> tuple[dict[str, Any], float]:
    """The result of `evaluate`, and the seconds that it took; the main process shows a bar on a terminal."""
    from optim.evaluate import evaluate, progress_bar
    from optim.setup import autocaster

    args, world = restored.args, restored.world
    begin = time.monotonic()
    with progress_bar(world, chosen.size, args.batch_size) as progress:
        result = evaluate(
            model,
            windows,
            args.batch_size,
            world,
            autocaster(args.dtype, world.device),
            chosen,
            progress=progress,
            kept=kept,
            sizes=sizes,
        )
    assert result is not None, "nothing asked this evaluation to stop"
    return result, time.monotonic() - begin


def wanted_core(restored: Restored, tokenizer: str | None) -> Core | None:
    """The tasks of --core_data in the model's tokens. Raises UserError."""
    from data.tokenizer import named, open_tokenizer
    from data.vocabulary import unknown, vocabulary_of
    from optim.core_metric import Core, wanted_tasks

    args = restored.args
    tasks = wanted_tasks(args)
    if not tasks:
        return None
    opened = open_tokenizer(vocabulary_of(restored.state, args, named(tokenizer) if tokenizer else None))
    if opened is None:
        raise unknown(args)
    core = Core(tasks, opened, args.vocab_size)
    if restored.world.is_main:
        core.check_texts()
    return core


def measured_core(core: Core, restored: Restored, model: Any) -> Result:
    """Of all processes together; the main one shows a bar on a terminal, and notes."""
    from tqdm import tqdm

    from optim.core_metric import notes_on, reach_of

    world, items = restored.world, sum(len(task.items) for task in core.tasks)
    with tqdm(
        total=items, unit="item", desc="CORE", disable=not (world.is_main and sys.stderr.isatty())
    ) as bar:
        result = core.measure(model, world, restored.args, progress=lambda done: bar.update(done - bar.n))
    assert result is not None, "nothing asked this evaluation to stop"
    if world.is_main:
        for note in (*notes_on(core, model), *result.notes(reach_of(model.settings))):
            print(f"note: {note}", file=sys.stderr)
    return result


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
    for name, source in summary.get("sources", {}).items():
        bits = source["bits_per_byte"]
        in_bits = "" if bits is None else f", {bits:.4f} bits per byte"
        lines.append(
            f"{name:<18} loss {source['val_loss']:.7f}, perplexity {source['val_perplexity']:.4f}{in_bits},"
            f" {source['n_tokens']:,} tokens"
        )
    if "core_metric" in summary:
        metric = "none" if summary["core_metric"] is None else f"{summary['core_metric']:.4f}"
        lines.append(f"CORE               {metric}, mean of {len(summary['core'])} centred accuracies")
    if summary["routing"]:
        lines.append(f"routing            {ROUTING[summary['routing']]}")
    return lines


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Evaluate and write the summary."""
    settings = vars(restored.args)
    other = OTHERS.get(str(settings.get("objective", settings.get("recipe"))))
    if other is None:
        measure_text(restored, own)
    else:
        module, name = other
        getattr(importlib.import_module(module), name)(restored, own)


def measure_text(restored: Restored, own: dict[str, Any]) -> None:
    """The loss on the windows of a validation split, and CORE."""
    import torch

    from data.sizes import token_sizes
    from optim.evaluate import perplexity
    from optim.window_losses import WindowLosses, save_windows

    args, path, world = restored.args, restored.path, restored.world
    place = world.on_main(lambda: output_folder(own["output_dir"], path, prints=True))
    core = world.on_all(lambda: wanted_core(restored, own["tokenizer"]))
    data, model = restored.data(), restored.model()
    identity = validation_identity(data)
    kept = partial_sums(restored, model, {"val": identity}, place)
    reads = reads_of(data, args)
    windows, chosen = windows_of(reads)
    sizes = token_sizes(data.meta, args.vocab_size)
    result, seconds = timed_evaluation(restored, model, windows, chosen, kept, sizes)
    scores = None if core is None else measured_core(core, restored, model)
    if not world.is_main:
        return
    losses, accuracies = result["window_losses"].numpy(), result["window_accuracies"].numpy()
    documents = documents_in(reads)
    summary = {
        "val_loss": result["val_loss"],
        "val_perplexity": perplexity(result["val_loss"]),
        "val_acc": result["val_acc"],
        "average_depth": result["average_depth"],
        "n_batches": result["n_batches"],
        "n_tokens": result["n_tokens"],
        **intervals(result["val_loss"], losses, accuracies, documents),
        "val_loss_batch_mean": result["val_loss_batch_mean"],
        "val_acc_batch_mean": result["val_acc_batch_mean"],
        "bits_per_byte": bits_of(result["val_loss"], result["n_tokens"], result["window_texts"]),
        "routing": routing_of(args),
        "tokens_per_second": result["n_tokens"] / seconds,
        "itr": restored.state.get("itr"),
        "checkpoint": str(path),
        "args": vars(args),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "data": identity,
    }
    if data.is_mixture:
        summary["sources"] = of_sources(result, reads)
    if scores is not None:
        summary |= scores.values()
    print("\n".join(printed_lines(summary)), flush=True)
    if place:
        save_windows(
            place / window_losses_of(EVALUATION.format(path.stem)),
            WindowLosses(chosen, losses, accuracies, documents),
        )
    if place and scores is not None:
        write_atomically(place / core_of(EVALUATION.format(path.stem)), scores.table())
    keep_result(place, EVALUATION.format(path.stem), summary, "summary            ")
    if kept:
        kept.remove()


def main(argv: list[str] | None = None) -> int:
    return with_checkpoint(
        "eval.py",
        "Measure the perplexity of a checkpoint on the validation split.",
        OWN_FLAGS,
        argv,
        run,
        of_text=False,
    )


if __name__ == "__main__":
    distributed.run_and_end(main)
