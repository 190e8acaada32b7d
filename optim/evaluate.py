"""Loss over a fixed set of windows, shared among processes, with the same result whatever their number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from data import TokenWindows
from distributed.world import World
from optim.partial import PartialSums

KEEP_SECONDS = 300.0  # after which an evaluation keeps what it has
EVAL_SEED = 20259  # of models that draw in evaluation; one draw a batch, whoever runs it


@dataclass(frozen=True)
class EvaluationPlan:
    """What evaluations during a training read: the same windows in the same batches all through the run, however training is cut.

    batches: how many, 0 for the whole split.
    """

    batch_size: int
    batches: int


def perplexity(loss: float) -> float:
    """Of a mean loss in nats; a loss beyond all floats gives the largest that JSON can hold."""
    return math.exp(min(loss, 700.0))


@torch.no_grad()
def evaluate(model: nn.Module, windows: TokenWindows, batch_size: int, world: World,
             autocast: Callable[[], AbstractContextManager[Any]], max_batches: int = 0,
             should_stop: Callable[[], bool] = lambda: False, progress: Callable[[int], object] = lambda done: None,
             kept: PartialSums | None = None) -> dict[str, Any] | None:
    """Token-weighted means over the first `max_batches` batches (0: all windows).

    Batch b is run by process b % world.size; sums are kept per batch and added in one order, so that the number of
    processes leaves no trace. Returns loss, perplexity, accuracy, depth and counts; the mean loss of each window; and
    the means over batches, which weigh a last, partial batch like a full one, as the authors' numbers do.
    None where `should_stop` (called by all processes together) said so. The model is left in training mode if it was.
    progress: called with the number of batches that are done. kept: where the sums go at a stop and from time to time, and from
    where they are taken up; it is the caller's to remove, once the numbers are told.
    """
    n_windows = windows.n_windows if not max_batches else min(windows.n_windows, max_batches * batch_size)
    n_batches = math.ceil(n_windows / batch_size)
    sums = torch.zeros(n_batches, 4, dtype=torch.float64)  # loss, hits, tokens, depth x tokens
    window_losses = torch.zeros(n_windows, dtype=torch.float64)
    was_training = model.training
    model.eval()
    try:
        begun = world.tell(kept.load(sums, window_losses) if kept and world.is_main else 0)
        kept_at = time.monotonic()
        progress(begun)
        for first in range(begun, n_batches, world.size):
            number = first + world.rank
            if number < n_batches:
                chosen = np.arange(number * batch_size, min(n_windows, (number + 1) * batch_size))
                idx, targets = (t.to(world.device, non_blocking=True) for t in windows.batch(chosen))
                devices = [world.device] if world.device.type == "cuda" else []
                with torch.random.fork_rng(devices), autocast():
                    torch.manual_seed(EVAL_SEED + number)
                    out = model(idx, targets=targets)
                losses = out["token_losses"].double()
                window_losses[torch.from_numpy(chosen)] = losses.mean(1).cpu()
                sums[number] = torch.tensor([losses.sum().item(), out["hits"].sum().item(), targets.numel(),
                                             float(out["average_depth"]) * targets.numel()], dtype=torch.float64)
            done = min(first + world.size, n_batches)
            progress(done)
            stop = should_stop()
            if kept and (stop or world.largest(int(time.monotonic() - kept_at > KEEP_SECONDS))):
                kept_at = time.monotonic()
                so_far = world.sum(sums.clone()), world.sum(window_losses.clone())
                if world.is_main:
                    kept.save(done, *so_far)
            if stop:
                return None
    finally:
        model.train(was_training)
    by_batch = world.sum(sums)
    loss, hits, tokens, depth = by_batch.sum(0).tolist()
    loss_of_batches, hits_of_batches = (by_batch[:, :2] / by_batch[:, 2:3]).mean(0).tolist()
    return {"val_loss": loss / tokens, "val_pp": perplexity(loss / tokens), "val_acc": hits / tokens,
            "average_depth": depth / tokens, "n_batches": n_batches, "n_tokens": int(tokens),
            "window_losses": world.sum(window_losses),
            "val_loss_batch_mean": loss_of_batches, "val_acc_batch_mean": hits_of_batches}
