"""CORE against the public code: examples, prompts, spans, losses, picks and scores, on its toy byte model."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.tokenizer import Bytes
from data.vocabulary import Vocabulary
from distributed.world import World
from models.loss import IGNORE
from optim.core_metric import Core
from optim.core_tasks import DELIMITER, Item, Task, examples_of, prompts_of, selected
from optim.scoring import Scorer
from tests.reference.cases import each
from tests.reference.test_modern_gpt import FILE, drawn

BOS = 256
CPU = torch.device("cpu")
each_suite = each(FILE, "core", "suites")


class BytesWithBOS(Bytes):
    known = Vocabulary("bytes", end_of_text=BOS)
    size = 257


class Toy(nn.Module):
    """The toy model of the file."""

    def __init__(self, case):
        super().__init__()
        width = case["width"]
        self.settings = SimpleNamespace(sequence_length=case["max_seq_len"] or 1 << 20, looks_ahead=bool)
        self.inputs, self.outputs = (
            0.4 * drawn(f"toy.{name}", shape, case["seed"], 1.0, 0.0).double()
            for name, shape in (("U", (257, width)), ("W", (width, 257)))
        )
        self.decay, self.bonus = case["decay"], torch.zeros(257, 257, dtype=torch.float64)
        for hint in map(str.encode, case["hints"]):
            self.bonus[list(hint[:-1]), list(hint[1:])] = case["bonus"]

    def forward(self, idx, targets):
        state, logits = torch.zeros(len(idx), self.inputs.shape[1], dtype=torch.float64), []
        for tokens in idx.T:
            state = self.decay * state + self.inputs[tokens]
            logits.append(state @ self.outputs + self.bonus[tokens])
        logits = torch.stack(logits, 1)
        losses = -logits.log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        counts = targets != IGNORE
        return {"token_losses": losses * counts, "hits": (logits.argmax(-1) == targets) & counts}


def item_of(kind, row):
    if kind == "language_modeling":
        return Item(((row["context"].strip(), row["continuation"]),))
    if kind == "schema":
        return Item(tuple((option, row["continuation"]) for option in row["context_options"]), row["gold"])
    return Item(tuple((row["query"], choice) for choice in row["choices"]), row["gold"])


def task_of(suite, task):
    items = [item_of(task["task_type"], row) for row in task["items"]]
    order = selected(len(items), suite["max_per_task"])
    delimiter = task.get("continuation_delimiter")
    return Task(
        task["label"],
        task["task_type"],
        [items[number] for number in order],
        task["num_fewshot"],
        task["random_baseline"],
        DELIMITER if delimiter is None else delimiter,
    )


def core_of(suite):
    return Core([task_of(suite, task) for task in suite["tasks"]], BytesWithBOS(), 257)


def examples(suite):
    """(core, task, index, what the file says of this item) of each item that is scored."""
    core = core_of(suite)
    for task, expected in zip(core.tasks, suite["tasks"], strict=True):
        assert len(task.items) == len(expected["results"]["examples"])
        for index, example in enumerate(expected["results"]["examples"]):
            yield core, task, index, example


def has_spans(example):
    """Whether each of its prompts has something to score; an item without is left out here, and has a pick by
    accident in the public code.
    """
    return all(0 < start < end for start, end in zip(example["start"], example["end"], strict=True))


@each_suite
def test_order_of_items(case):
    for task in case["tasks"]:
        assert selected(len(task["items"]), case["max_per_task"]) == task["results"]["shuffled_order"]


@each_suite
def test_few_shot_examples(case):
    for task in case["tasks"]:
        order = task["results"]["shuffled_order"]
        for index, example in enumerate(task["results"]["examples"]):
            found = examples_of(index, len(order), task["num_fewshot"])
            assert [order[other] for other in found] == example["fewshot"]


@each_suite
def test_prompts(case):
    for _, task, index, example in examples(case):
        shots = [task.items[other] for other in examples_of(index, len(task.items), task.num_fewshot)]
        assert prompts_of(task, task.items[index], shots) == example["prompts"]


@each_suite
def test_spans(case):
    longest = Toy(case["model"]).settings.sequence_length
    for core, task, index, example in examples(case):
        whole = core.prompts(task, index)
        cut = [prompt.cut_to(longest) for prompt in whole]
        assert [len(prompt.tokens) for prompt in whole] == example["lengths"]
        assert [prompt.start for prompt in cut] == example["start"]
        assert [len(prompt.tokens) for prompt in cut] == example["end"]
        dropped = [len(a.tokens) - len(b.tokens) for a, b in zip(whole, cut, strict=True)]
        assert dropped == example["cropped"]
        assert all(prompt.can_be_scored for prompt in cut) == has_spans(example)


@each_suite
def test_mean_losses_and_guesses(case):
    model = Toy(case["model"])
    scorer = Scorer(model, CPU, 3)
    for core, task, index, example in examples(case):
        if not has_spans(example):
            continue
        prompts = [prompt.cut_to(scorer.longest) for prompt in core.prompts(task, index)]
        scores = scorer.loglikelihoods(
            [(prompt.tokens[: prompt.start], prompt.tokens[prompt.start :]) for prompt in prompts]
        )
        if "mean_loss" in example:
            lengths = [len(prompt.tokens) - prompt.start for prompt in prompts]
            losses = [-total / length for (total, _), length in zip(scores, lengths, strict=True)]
            assert losses == pytest.approx(example["mean_loss"], abs=1e-6)
            assert losses.index(min(losses)) == example["picked"]
        else:
            assert scores[0][1] == (example["predicted"] == example["actual"]) == example["correct"]


@pytest.mark.parametrize("most_tokens", [100, 10_000])
@each_suite
def test_scores(case, most_tokens):
    core, model = core_of(case), Toy(case["model"])
    args = SimpleNamespace(batch_size=1, sequence_length=most_tokens, dtype="float32", compile=False)
    model.settings.is_modern = False
    result = core.measure(model, World(CPU), args)
    for task in case["tasks"]:
        found, items = result.tasks[task["label"]], task["results"]["examples"]
        scored = [example for example in items if has_spans(example)]
        accuracy = sum(e["correct"] for e in scored) / len(scored) if scored else None
        assert found.accuracy == pytest.approx(accuracy, abs=1e-6)
        assert found.left_out == len(items) - len(scored)
        assert found.cut == sum(max(e["cropped"]) > 0 for e in scored)
        if found.left_out == 0:
            expected = task["results"]["accuracy"], task["results"]["centred"]
            assert (found.accuracy, found.centred) == pytest.approx(expected, abs=1e-6)
    if sum(score.left_out for score in result.tasks.values()) == 0:
        assert result.core_metric == pytest.approx(case["core_metric"], abs=1e-6)
