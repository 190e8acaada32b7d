"""What eval.py measures of a network that was fine-tuned on examples: on all validation examples that fit, or
on as many as --eval_sample_size tokens hold.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.bins import identity_of
from data.example_sources import PairSet, PromptSet, SftSet
from data.examples import ExampleSplits
from data.vocabulary import need_same_tokens
from optim.evaluate import evaluate, perplexity, progress_bar, windows_to_read
from optim.intervals import SAMPLE, interval
from optim.names import EVALUATION
from optim.objectives import same_frozen
from optim.objectives.dpo import REFERENCE, Dpo
from optim.objectives.sft import Answers
from optim.partial import PartialSums, facts_of
from optim.restore import Restored, keep_result, output_folder
from optim.reward_evaluation import means_of, measure_rewards, try_reward
from optim.setup import autocaster
from optim.tracked import PREFERENCES, rewards_of
from optim.tuning import open_examples_of, open_reference, rollouts_of
from optim.tuning_evaluations import mean_of_pairs, measure_pairs


def of_answers(restored: Restored, own: dict[str, Any]) -> None:
    """Of --objective sft. Raises UserError."""
    place, examples, model = _opened(restored, own)
    args, world = restored.args, restored.world
    answers = SftSet(examples.val, args.sequence_length, examples.stop)
    chosen = windows_to_read(args, len(answers))
    kept = _partial_sums(restored, model, examples, place)
    with progress_bar(world, len(chosen), args.batch_size) as progress:
        found = evaluate(
            model,
            Answers(answers),
            args.batch_size,
            world,
            autocaster(args.dtype, world.device),
            chosen,
            progress=progress,
            kept=kept,
        )
    assert found is not None, "nothing asked this evaluation to stop"
    if not world.is_main:
        return
    counts, loss = answers.counts[chosen], found["val_loss"]
    # of a ratio of two sums, by how far each example is from it
    apart = (found["window_losses"].numpy() - loss) * counts / counts.mean()
    ends = ends_of(loss + apart)
    names = ("val_loss", "val_acc", "average_depth", "n_batches", "n_tokens")
    summary = {
        **{name: found[name] for name in names},
        "val_perplexity": perplexity(loss),
        "val_loss_ci95": ends,
        "val_perplexity_ci95": ends and list(map(perplexity, ends)),
        "n_examples": len(chosen),
        **_facts(restored, model, examples),
    }
    lines = [
        f"validation loss    {loss:.7f} nats a token of an answer{_in_words(ends)}",
        f"perplexity         {summary['val_perplexity']:.4f}",
        f"accuracy           {summary['val_acc']:.7f}",
        f"average depth      {summary['average_depth']:.4f} layers",
        f"tokens             {summary['n_tokens']:,} that count, in {answers.describe()}",
    ]
    _keep(restored, place, lines, summary, kept)


def of_pairs(restored: Restored, own: dict[str, Any]) -> None:
    """Of --objective dpo. Raises UserError, also where the reference is not there."""
    place, examples, model = _opened(restored, own)
    args, world = restored.args, restored.world
    pairs = PairSet(examples.val, args.sequence_length, examples.stop)
    chosen = windows_to_read(args, len(pairs))
    reference = open_reference(args, world, examples, model, restored.path.parent)
    if REFERENCE not in restored.given:
        same_frozen({REFERENCE: reference.file}, restored.state.get("frozen", {}))
    objective = Dpo(model, reference.network, args.beta).to(world.device)
    kept = _partial_sums(restored, objective, examples, place)
    with progress_bar(world, len(chosen), args.batch_size) as progress:
        found = measure_pairs(
            objective, pairs, args, world, args.batch_size, chosen, progress=progress, kept=kept
        )
    assert found is not None, "nothing asked this evaluation to stop"
    if not world.is_main:
        return
    means = mean_of_pairs(found)
    ends = {name: ends_of(column.numpy()) for name, column in zip(PREFERENCES, found.T, strict=True)}
    summary = {
        "measures": "pairs",  # so there is no perplexity
        **means,
        **{f"{name}_ci95": pair for name, pair in ends.items()},
        "beta": args.beta,
        REFERENCE: reference.file,
        **_facts(restored, model, examples),
    }
    titles = {
        "val_loss": "validation loss",
        "val_margin": "margin",
        "val_acc": "accuracy",
        "val_policy_acc": "chosen likelier",
    }
    lines = [f"{titles[name]:<18} {means[name]:.7f}{_in_words(ends[name])}" for name in PREFERENCES]
    lines += [f"pairs              {pairs.describe()}", f"reference          {reference.file['file']}"]
    _keep(restored, place, lines, summary, kept)


def of_prompts(restored: Restored, own: dict[str, Any]) -> None:
    """Of --objective grpo: completions of --eval_samples for each prompt. Raises UserError."""
    place, examples, model = _opened(restored, own)
    args, world = restored.args, restored.world
    prompts = PromptSet(examples.val, args.sequence_length, examples.stop, args.completion_tokens)
    rollouts = world.on_all(lambda: rollouts_of(args, world, examples))
    world.on_all(lambda: try_reward(rollouts.reward, prompts))
    chosen = windows_to_read(args, len(prompts))
    kept = _partial_sums(restored, model, examples, place)
    with progress_bar(world, len(chosen), args.batch_size) as progress:
        found = measure_rewards(
            model, rollouts, prompts, args, world, args.batch_size, chosen, progress=progress, kept=kept
        )
    assert found is not None, "nothing asked this evaluation to stop"
    if not world.is_main:
        return
    means, ends = means_of(*found, args.pass_k), ends_of(found[1].mean(1).numpy())
    summary = {
        "measures": "prompts",  # so there is no perplexity
        **means,
        "reward_ci95": ends,
        "reward_by": args.reward,
        **_facts(restored, model, examples),
    }
    lines = [f"{name:<18} {means[name]:.7f}" for name in rewards_of(args.pass_k)]
    lines[0] += f"{_in_words(ends)}, {args.reward}"
    lines += [
        f"completions        {args.eval_samples} of each prompt, {means['length']:.2f} tokens long,"
        f" {means['ended']:.2%} ended",
        f"prompts            {prompts.describe()}",
    ]
    _keep(restored, place, lines, summary, kept)


def ends_of(values: NDArray[np.float64]) -> list[float] | None:
    """Of the 95% interval of a mean over examples; None for a single one."""
    found = interval(values, np.arange(values.size))
    return None if found is None else [found.low, found.high]


def _in_words(ends: Sequence[float] | None) -> str:
    if ends is None:
        return "  (one example: no interval)"
    return f"  (95% interval {ends[0]:.4f} to {ends[1]:.4f}, by examples)"


def _opened(restored: Restored, own: dict[str, Any]) -> tuple[Path | None, ExampleSplits[Any], Any]:
    """Where the results go, the examples, and the network. Raises UserError."""
    args, world = restored.args, restored.world
    place = world.on_main(lambda: output_folder(own["output_dir"], restored.path, prints=True))
    examples = open_examples_of(args, world)
    need_same_tokens(restored.state, examples.meta, examples.folder)
    return place, examples, restored.model()


def _partial_sums(
    restored: Restored, model: Any, examples: ExampleSplits[Any], place: Path | None
) -> PartialSums | None:
    """Of an interrupted call, as eval.py keeps them of text."""
    args, beside = restored.args, restored.path.parent
    folder = beside if os.access(beside, os.W_OK) else place
    facts = facts_of(args, args.batch_size, identity_of(examples.folder), restored.world.device, SAMPLE)
    say = functools.partial(print, file=sys.stderr)
    return PartialSums(folder, restored.path.stem, model, facts, say) if folder else None


def _facts(restored: Restored, model: Any, examples: ExampleSplits[Any]) -> dict[str, Any]:
    """What any summary of eval.py says of the checkpoint and its data."""
    return {
        "itr": restored.state.get("itr"),
        "checkpoint": str(restored.path),
        "args": vars(restored.args),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "data": (identity_of(examples.folder) or {}).get("val"),
    }


def _keep(
    restored: Restored,
    place: Path | None,
    lines: Sequence[str],
    summary: dict[str, Any],
    kept: PartialSums | None,
) -> None:
    """Print, and write the summary."""
    print("\n".join([f"checkpoint         {restored.path}", *lines]), flush=True)
    keep_result(place, EVALUATION.format(restored.path.stem), summary, "summary            ")
    if kept:
        kept.remove()
