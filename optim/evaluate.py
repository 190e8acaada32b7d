"""Loss over a fixed set of windows, shared among processes, with the same result whatever their number."""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.batch import Batch, EvalSet
from data.sizes import text_in
from distributed.shard import is_sharded
from distributed.world import World
from models.loss import IGNORE
from optim.intervals import spread
from optim.partial import PartialSums

KEEP_SECONDS = 300.0  # after which an evaluation keeps what it has
EVAL_SEED = 20259  # of models that draw in evaluation; one draw a batch, whoever runs it


@dataclass(frozen=True)
class EvaluationPlan:
    """What evaluations during a training read: the same windows in the same batches all through the run,
    however training is cut.

    batches: how many, 0 for the whole split.
    """

    batch_size: int
    batches: int


def perplexity(loss: float) -> float:
    """Of a mean loss in nats; a loss beyond all floats gives the largest that JSON can hold."""
    return math.exp(min(loss, 700.0))


def windows_to_read(args: Namespace, n_windows: int) -> NDArray[np.int64]:
    """Numbers of the windows that an evaluation reads: all, or whole batches of at least
    --eval_sample_size tokens, spread over the split.
    """
    tokens = args.eval_sample_size or n_windows * args.sequence_length
    return spread(n_windows, math.ceil(tokens / (args.batch_size * args.sequence_length)) * args.batch_size)


@contextmanager
def progress_bar(world: World, n_windows: int, batch_size: int) -> Iterator[Callable[[int], object]]:
    """Takes the number of batches that are done; shown by the main process on a terminal."""
    from tqdm import tqdm

    is_shown = world.is_main and sys.stderr.isatty()
    total = math.ceil(n_windows / batch_size)
    with tqdm(total=total, unit="batch", desc="evaluating", disable=not is_shown) as bar:
        yield lambda done: bar.update(done - bar.n)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    windows: EvalSet,
    batch_size: int,
    world: World,
    autocast: Callable[[], AbstractContextManager[Any]],
    windows_read: NDArray[np.int64] | int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda done: None,
    kept: PartialSums | None = None,
    sizes: NDArray[np.int64] | None = None,
) -> dict[str, Any] | None:
    """Token-weighted means over some windows: those of these numbers, or the first so many batches (0: all
    windows). Targets that are IGNORE do not count.

    Returns loss, perplexity, accuracy, depth and counts; the mean loss and the accuracy of each window,
    (windows,) float64, and with `sizes`, the bytes of each token, its text (`text_in`); and the means over
    batches, which weigh a last, partial batch like a full one, as the authors' numbers do. The rest is as
    `summed` has it.
    """
    size_of = None if sizes is None else torch.from_numpy(sizes).to(world.device)

    def measure(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        return _batch_sums(model, batch, world.device, autocast, seed, size_of)

    columns = 4, 2 if sizes is None else 4  # loss, hits, tokens, depth x tokens; mean loss, accuracy, text
    found = summed(
        model, measure, columns, windows, batch_size, world, windows_read, should_stop, progress, kept
    )
    return None if found is None else _means(*found)


@torch.no_grad()
def summed(
    model: nn.Module,
    measure: Callable[[Batch, int], tuple[Tensor, Tensor]],
    columns: tuple[int, int],
    windows: EvalSet,
    batch_size: int,
    world: World,
    windows_read: NDArray[np.int64] | int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda done: None,
    kept: PartialSums | None = None,
) -> tuple[Tensor, Tensor] | None:
    """What `measure` says of each batch of some windows, (batches, columns[0]), and of each window,
    (windows, columns[1]), float64. It is given a batch on its device and a seed, and called in evaluation
    mode without gradients; the model is left in training mode if it was.

    Batch b is run by process b % world.size; sums are kept per batch and added in one order, so that the
    number of processes leaves no trace. Where weights are in shards, processes without a batch run the last
    one too, as all must run together. None where `should_stop` (called by all processes together) said so.
    progress: called with the number of batches that are done. kept: where the sums go at a stop and from time
    to time, and from where they are taken up; it is the caller's to remove, once the numbers are written.
    """
    if isinstance(windows_read, int):
        n_windows = len(windows)
        if windows_read:
            n_windows = min(n_windows, windows_read * batch_size)
        windows_read = np.arange(n_windows)
    n_batches = math.ceil(windows_read.size / batch_size)
    sums = torch.zeros(n_batches, columns[0], dtype=torch.float64)
    by_window = torch.zeros(windows_read.size, columns[1], dtype=torch.float64)
    was_training = model.training
    model.eval()
    try:
        begun = world.broadcast(kept.load(sums, by_window) if kept and world.is_main else 0)
        kept_at = time.monotonic()
        progress(begun)
        for first in range(begun, n_batches, world.size):
            number = min(first + world.rank, n_batches - 1)
            is_mine = first + world.rank < n_batches
            if is_mine or is_sharded(model):
                part = slice(number * batch_size, (number + 1) * batch_size)
                batch = windows.batch(windows_read[part]).to(world.device)
                found = measure(batch, EVAL_SEED + number)
                if is_mine:
                    sums[number], by_window[part] = found
            done = min(first + world.size, n_batches)
            progress(done)
            stop = should_stop()
            if kept and (stop or world.largest(int(time.monotonic() - kept_at > KEEP_SECONDS))):
                kept_at = time.monotonic()
                so_far = world.sum(sums.clone()), world.sum(by_window.clone())
                if world.is_main:
                    kept.save(done, *so_far)
            if stop:
                return None
    finally:
        model.train(was_training)
    return world.sum(sums), world.sum(by_window)


def _batch_sums(
    model: nn.Module,
    batch: Batch,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    seed: int,
    size_of: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """A batch: its loss, hits, tokens and depth x tokens, (4,), and each window's mean loss and accuracy, and
    its text where size_of (V,) is given, (windows, 2 or 4); float64.
    """
    targets = batch["targets"]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), autocast():
        torch.manual_seed(seed)
        out = model(batch["inputs"], targets=targets)
    losses, hits, counts = out["token_losses"].double(), out["hits"], (targets != IGNORE).sum(1)
    n_tokens = int(counts.sum())
    sums = [losses.sum().item(), hits.sum().item(), n_tokens, float(out["average_depth"]) * n_tokens]
    by_window = torch.stack([losses.sum(1) / counts, hits.double().sum(1) / counts], dim=1)
    if size_of is not None:
        by_window = torch.cat([by_window, text_in(targets, losses, size_of)], dim=1)
    return torch.tensor(sums, dtype=torch.float64), by_window.cpu()


def _means(by_batch: Tensor, by_window: Tensor) -> dict[str, Any]:
    """What `evaluate` returns, of the sums of all processes."""
    loss, hits, tokens, depth = by_batch.sum(0).tolist()
    loss_of_batches, hits_of_batches = (by_batch[:, :2] / by_batch[:, 2:3]).mean(0).tolist()
    window_losses, window_accuracies = by_window[:, :2].unbind(1)
    return {
        "val_loss": loss / tokens,
        "val_pp": perplexity(loss / tokens),
        "val_acc": hits / tokens,
        "average_depth": depth / tokens,
        "n_batches": len(by_batch),
        "n_tokens": int(tokens),
        "window_losses": window_losses,
        "window_accuracies": window_accuracies,
        "window_texts": by_window[:, 2:],
        "val_loss_batch_mean": loss_of_batches,
        "val_acc_batch_mean": hits_of_batches,
    }
