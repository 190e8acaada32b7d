"""Evaluations of a training: what one is, and the one of the text networks, the loss on held-out windows.

An evaluation is any object of the form of `Evaluation`. A training has a list of them. Rows of metrics.jsonl
are of the kinds "eval@NAME" and, at the end, "final@NAME"; of the held-out loss, which has no name, "eval"
and "final".
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from data.batch import EvalSet
from data.sizes import bits_per_byte
from distributed.shard import is_sharded
from distributed.world import World
from optim.evaluate import EvaluationPlan, evaluate
from optim.names import OF_TRAINING
from optim.partial import PartialSums, facts_of
from optim.reporting import log
from optim.setup import autocaster
from optim.tracked import BITS_PER_BYTE, HELD_OUT


@dataclass
class Measured:
    """values: of a metrics row. words: a line for people, without the step. recorded: to be called once both
    are written, on the main process.
    """

    values: dict[str, Any]
    words: str
    recorded: Callable[[], object] = lambda: None


class Evaluation(Protocol):
    """name: in metrics and in --track. quantities: what may be tracked, each with its better direction."""

    name: str
    quantities: Mapping[str, str]

    def run(
        self, whole: bool, should_stop: Callable[[], bool], advanced: Callable[[], object]
    ) -> Measured | None:
        """Measure, on all processes together; None where `should_stop` cut it short.

        whole: at the end, on everything there is. advanced: to be called where a run that is cut short has
        brought the evaluation further.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run goes on measuring the same; plain values."""
        ...

    def take_up(self, state: Mapping[str, Any] | None, args: Mapping[str, Any]) -> None:
        """Go on as the run began to. state: of a checkpoint, None where it has none; args: its settings."""
        ...

    def summary(self, rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
        """What summary.json says of the rows of metrics.jsonl."""
        ...


class HeldOut:
    """Loss, perplexity and accuracy on the validation split: some batches during training, all at the end.

    counts: further numbers of a row that the summary has.
    """

    counts: Sequence[str] = ("average_depth", "n_tokens")

    def __init__(
        self,
        args: Namespace,
        world: World,
        network: nn.Module,
        windows: EvalSet,
        folder: Path,
        identity: Mapping[str, Any],
        name: str = "",
        sizes: NDArray[np.int64] | None = None,
    ) -> None:
        """identity: of the data, as data.bins.identity_of has it. sizes: bytes of each token; None where the
        tokenizer is not known.
        """
        self.args, self.world, self.network, self.windows = args, world, network, windows
        self.folder, self.identity, self.name = folder, identity, name
        self.sizes = sizes
        self.quantities: Mapping[str, str] = HELD_OUT
        if sizes is None:
            self.quantities = {each: HELD_OUT[each] for each in HELD_OUT if each != BITS_PER_BYTE}
        self.autocast = autocaster(args.dtype, world.device)
        self.plan = EvaluationPlan(args.batch_size, args.eval_batches)

    def run(
        self, whole: bool, should_stop: Callable[[], bool], advanced: Callable[[], object]
    ) -> Measured | None:
        # no process has all the weights that sums are of: one that is cut short begins anew
        kept = None if is_sharded(self.network) else self.partial_sums(self.network, advanced)
        result = evaluate(
            self.network,
            self.windows,
            self.plan.batch_size,
            self.world,
            self.autocast,
            0 if whole else self.plan.batches,
            should_stop,
            kept=kept,
            sizes=self.sizes,
        )
        if result is None:
            return None
        words = (
            f"loss {result['val_loss']:.4f}  perplexity {result['val_pp']:.2f}  accuracy"
            f" {result['val_acc']:.4f}  average depth {result['average_depth']:.2f}"
        )
        texts = result.pop("window_texts")
        if self.sizes is not None:
            result[BITS_PER_BYTE] = bits_per_byte(result["val_loss"], result["n_tokens"], texts)
            words += f"  bits per byte {result[BITS_PER_BYTE]:.4f}"
        for name in ("window_losses", "window_accuracies", "val_loss_batch_mean", "val_acc_batch_mean"):
            del result[name]
        return Measured(result, words, kept.remove if kept else lambda: None)

    def partial_sums(self, model: nn.Module, advanced: Callable[[], object]) -> PartialSums:
        """Those of this evaluation. model: of all weights that it depends on."""
        facts = facts_of(self.args, self.plan.batch_size, self.identity, self.world.device)
        of = f"{OF_TRAINING}@{self.name}" if self.name else OF_TRAINING
        return PartialSums(self.folder, of, model, facts, log.info, advanced)

    def state(self) -> dict[str, Any]:
        return asdict(self.plan)

    def take_up(self, state: Mapping[str, Any] | None, args: Mapping[str, Any]) -> None:
        if state is None:  # from before checkpoints recorded it
            state = {"batch_size": args["batch_size"], "batches": args["eval_batches"]}
        plan = EvaluationPlan(**state)
        if self.args.eval_batches != plan.batches:
            log.info(
                f"note: --eval_batches {self.args.eval_batches} is not taken up: this run began to evaluate"
                f" on {plan.batches} batches of {plan.batch_size} sequences, and goes on with these"
            )
        self.plan = plan

    def summary(self, rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
        n_windows, plan = len(self.windows), self.plan
        some = min(n_windows, plan.batches * plan.batch_size) if plan.batches else n_windows
        of = f"@{self.name}" if self.name else ""
        final = next(row for row in reversed(rows) if row["kind"] == f"final{of}" and row["step"] == step)
        found: dict[str, Any] = {
            "evaluation": {"batch_size": plan.batch_size, "final_windows": n_windows, "windows": some}
        }
        during = [row for row in rows if row["kind"] == f"eval{of}"]
        for name in self.quantities:
            found[name] = [row.get(name) for row in during]  # an earlier version measured less
        for name in (*self.quantities, *self.counts):
            found[f"final_{name}"] = final.get(name)
        return {f"{name}{of}": value for name, value in found.items()}
