"""CORE of a network: the mean centred accuracy over the tasks of a bundle (optim/core_tasks.py).

    core = Core(read_bundle(path, 500), tokenizer, vocab_size)
    result = core.measure(network, world, args)

During a training the hook `CoreEvaluation` measures it every --core_metric_every steps, and at the last one.
A row of metrics.jsonl is {"kind": "eval@CORE", "step": N, "core_metric": ..., "core": {task: {"accuracy":
..., "centred": ..., "items": ..., "left_out": ..., "cut": ...}}}. It leaves no trace in the training.
"""

from __future__ import annotations

import csv
import io
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config.mixture import names_of_sources
from data.tokenizer import Tokenizer
from distributed.world import World
from errors import UserError
from optim.core_bundle import read_bundle
from optim.core_tasks import (
    BETWEEN,
    Item,
    Prompt,
    Task,
    centred,
    examples_of,
    is_right,
    prompts_of,
    spanned,
)
from optim.evaluate import EVAL_SEED
from optim.generation import tokens_of
from optim.hooks import Hook, Run
from optim.names import CORE, CORE_ROW
from optim.reporting import log
from optim.samples import tokenizer_of
from optim.scoring import Scorer
from optim.setup import autocaster

CHUNK = 16  # items that one process scores between two looks at whether to stop
MODERN_REACH = 10  # sequence lengths that modern blocks are given at once


@dataclass(frozen=True)
class TaskScore:
    """accuracy, centred: None where no item could be scored. items: all of them; left_out: those that could
    not be scored; cut: those that were too long, and lost their beginning.
    """

    accuracy: float | None
    centred: float | None
    items: int
    left_out: int
    cut: int


@dataclass(frozen=True)
class Result:
    """Of each task by its label, in the bundle's order."""

    tasks: dict[str, TaskScore]

    @property
    def core_metric(self) -> float | None:
        """The plain mean of the centred scores; None where a task has none."""
        scores = [task.centred for task in self.tasks.values() if task.centred is not None]
        return sum(scores) / len(scores) if len(scores) == len(self.tasks) else None

    def values(self) -> dict[str, Any]:
        """Of a metrics row and of eval.py's summary."""
        return {
            "core_metric": self.core_metric,
            "core": {label: vars(score) for label, score in self.tasks.items()},
        }

    def table(self) -> str:
        """The same as CSV, a task a line."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["task", *(field.name for field in fields(TaskScore))])
        for label, score in self.tasks.items():
            table.writerow([label, *vars(score).values()])
        table.writerow([CORE, "", self.core_metric])
        return text.getvalue()

    def words(self) -> str:
        metric = "none" if self.core_metric is None else f"{self.core_metric:.4f}"
        return f"{metric}, mean of {len(self.tasks)} centred accuracies"

    def notes(self, longest: int) -> list[str]:
        """A line for each task whose items were not all scored whole."""
        lines = []
        for label, score in self.tasks.items():
            parts = []
            if score.left_out:
                parts.append(
                    f"{score.left_out} left out (a choice is the beginning of all others, or the text before"
                    " the answer has other tokens without it, or the answer alone is too long)"
                )
            if score.cut:
                parts.append(f"{score.cut} longer than {longest} tokens, and cut to their ends")
            if parts:
                lines.append(f"CORE, {label}, {score.items} items: {'; '.join(parts)}")
        return lines


class Core:
    """The tasks in the tokens of a model."""

    def __init__(self, tasks: Sequence[Task], tokenizer: Tokenizer, vocab_size: int) -> None:
        """Raises UserError where an item's text has no tokens that the model knows."""
        self.tasks, self.tokenizer, self.vocab_size = tasks, tokenizer, vocab_size
        end = tokenizer.known.end_of_text
        self.begin = [] if end is None else [end]
        # (task, its first item) of each chunk
        self.chunks = [
            (number, first) for number, task in enumerate(tasks) for first in range(0, len(task.items), CHUNK)
        ]
        if tokenizer.size > vocab_size:
            raise UserError(
                f"--core_data: the tokenizer has {tokenizer.size} tokens, and the model knows --vocab_size"
                f" {vocab_size} of them"
            )

    def check_texts(self) -> None:
        """Raises UserError for a text that the tokenizer has no tokens for."""
        for task in self.tasks:
            for item in task.items:
                for text in (BETWEEN, *prompts_of(task, item, [])):
                    try:
                        self.tokenizer.encode(text)
                    except (UserError, UnicodeError) as error:
                        line = str(error).replace("\n", " ")
                        raise UserError(f"--core_data: task {task.label}: {line[:200]}") from None

    def prompts(self, task: Task, index: int) -> list[Prompt]:
        """What is scored of a task's item, before it is cut."""
        examples = [task.items[other] for other in examples_of(index, len(task.items), task.num_fewshot)]
        texts = prompts_of(task, task.items[index], examples)
        tokens = [[*self.begin, *tokens_of(self.tokenizer, text, self.vocab_size)] for text in texts]
        return spanned(task.kind, tokens)

    def _score(self, scorer: Scorer, number: int) -> Tensor:
        """Of each item of a chunk, whether its answer is right, it is left out, and it is cut; (items, 3)."""
        task_number, first = self.chunks[number]
        task = self.tasks[task_number]
        items = task.items[first : first + CHUNK]
        found = torch.zeros(len(items), 3, dtype=torch.float64)
        scored: list[tuple[int, Item, list[Prompt]]] = []
        for place, item in enumerate(items):
            whole = self.prompts(task, first + place)
            prompts = [prompt.cut_to(scorer.longest) for prompt in whole]
            found[place, 2] = max(len(prompt.tokens) for prompt in whole) > scorer.longest
            if all(prompt.can_be_scored for prompt in prompts):
                scored.append((place, item, prompts))
            else:
                found[place, 1:] = torch.tensor([1.0, 0.0])
        requests = [
            (prompt.tokens[: prompt.start], prompt.tokens[prompt.start :])
            for _, _, prompts in scored
            for prompt in prompts
        ]
        scores = iter(scorer.loglikelihoods(requests))
        for place, item, prompts in scored:
            losses, greedy = [], []
            for prompt in prompts:
                total, is_greedy = next(scores)
                losses.append(-total / (len(prompt.tokens) - prompt.start))
                greedy.append(is_greedy)
            found[place, 0] = is_right(task, item, losses, greedy)
        return found

    def measure(
        self,
        network: Any,
        world: World,
        args: Namespace,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], object] = lambda done: None,
    ) -> Result | None:
        """Of all processes together, chunk c by process c % world.size, so that their number leaves no trace;
        None where `should_stop` (called by all together) said so. progress: called with the number of items
        that are done. Network and generators are left as they were.
        """
        begins = np.cumsum(
            [0, *(len(self.tasks[number].items[first : first + CHUNK]) for number, first in self.chunks)]
        )
        found = torch.zeros(int(begins[-1]), 3, dtype=torch.float64)
        with _borrowed(network, world.device, args.compile):
            scorer = scorer_of(network, world.device, args)
            for first in range(0, len(self.chunks), world.size):
                number = first + world.rank
                if number < len(self.chunks):
                    torch.manual_seed(EVAL_SEED + number)  # of models that draw in evaluation
                    found[begins[number] : begins[number + 1]] = self._score(scorer, number)
                progress(int(begins[min(first + world.size, len(self.chunks))]))
                if should_stop():
                    return None
        return self._result(world.sum(found))

    def _result(self, found: Tensor) -> Result:
        scores, first = {}, 0
        for task in self.tasks:
            right, left_out, cut = found[first : first + len(task.items)].sum(0).tolist()
            first += len(task.items)
            count = len(task.items) - left_out
            accuracy = right / count if count else None
            score = None if accuracy is None else centred(accuracy, task.baseline)
            scores[task.label] = TaskScore(accuracy, score, len(task.items), int(left_out), int(cut))
        return Result(scores)


def scorer_of(network: Any, device: torch.device, args: Namespace) -> Scorer:
    """With batches of as many tokens as a micro-batch of the training has."""
    return Scorer(
        network,
        device,
        args.batch_size,
        autocaster(args.dtype, device),
        longest=reach_of(network.settings),
        most_tokens=args.batch_size * args.sequence_length,
    )


def reach_of(settings: Any) -> int:
    """How many tokens a network is given at once. Published blocks have no more than their sequence_length;
    modern ones have windows, and take what the public code takes.
    """
    length: int = settings.sequence_length
    return MODERN_REACH * length if settings.is_modern else length


@contextmanager
def _borrowed(network: Any, device: torch.device, compiled: bool) -> Iterator[None]:
    """The network is for evaluation; then it and all generators are as they were."""
    was_training = network.training
    with ExitStack() as restored:
        restored.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if compiled:
            # programs of other shapes could replace those of the training
            restored.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            network.train(was_training)


class CoreEvaluation(Hook):
    """Measures CORE of a training, on all processes together."""

    def __init__(self, core: Core, network: Any, world: World, args: Namespace) -> None:
        self.core, self.network, self.world, self.args = core, network, world, args
        self.is_told = False  # what the items of each task lack

    def joined(self, run: Run) -> None:
        self.run = run

    def started(self, step: int) -> None:
        for note in notes_on(self.core, self.network):
            log.info(f"note: {note}")
        if step:  # the run before may have ended before the evaluation of this step
            self._measure(step)

    def stepped(self, step: int, loss: float) -> None:
        self._measure(step)

    def _measure(self, step: int) -> None:
        is_due = step % self.args.core_metric_every == 0 or step == self.args.iterations
        if not is_due or self._is_done(step):
            return
        begin = time.monotonic()
        result = self.core.measure(self.network, self.world, self.args, self._poll)
        if result is None:  # the run that goes on has it
            return
        lines = [f"{CORE} at step {step}: {result.words()}"]
        if not self.is_told:
            self.is_told = True
            lines += [f"note: {line}" for line in result.notes(reach_of(self.network.settings))]
        row = {"kind": CORE_ROW, "step": step, **result.values()}
        self.run.reporter.row({**row, "time": {"seconds": time.monotonic() - begin}}, lines)

    def _poll(self) -> bool:
        self.run.watchdog.beat()
        return self.run.stopper.poll()

    def _is_done(self, step: int) -> bool:
        """Whether metrics.jsonl has a row of a step."""
        experiment = self.run.experiment
        return bool(self.world.broadcast(experiment is not None and experiment.metrics.has(CORE_ROW, step)))


def wanted_tasks(args: Namespace) -> list[Task]:
    """Those of --core_data, none without it. Raises UserError."""
    return [] if args.core_data is None else read_bundle(args.core_data, args.core_metric_max_per_task)


def core_evaluation(
    args: Namespace, world: World, tasks: Sequence[Task], meta: Mapping[str, Any], network: Any
) -> CoreEvaluation:
    """The hook that --core_data asks for. meta: of the data. Raises UserError where the tasks cannot be had
    in these tokens.
    """
    if CORE in names_of_sources(args.dataset):
        raise UserError(f"--core_data: a source of --dataset is named {CORE}, and would share its rows")
    core = Core(tasks, tokenizer_of(meta, args.dataset, "--core_data"), args.vocab_size)
    if world.is_main:
        core.check_texts()
    return CoreEvaluation(core, network, world, args)


def notes_on(core: Core, network: Any) -> list[str]:
    """What is special of these tokens and this model."""
    lines = []
    if not core.begin:
        kind = core.tokenizer.known.tokenizer
        lines.append(f"{CORE}: texts begin with no end-of-text token, as the tokenizer ({kind}) has none")
    if network.settings.looks_ahead():
        lines.append(
            f"{CORE}: the choice of tokens by capacity looks at later ones, so this is not a causal model's"
            " score; prompts of one length are scored together, without padding"
        )
    return lines
