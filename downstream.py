"""Downstream tasks (the paper's Table 3) through EleutherAI's lm-evaluation-harness.

    pip install -r requirements-downstream.txt
    python downstream.py --checkpoint exps/.../NAME --tasks arc_easy arc_challenge hellaswag piqa mmlu
    python downstream.py --checkpoint exps/.../ckpt_40000.pt --tasks mine --include_path FOLDER_OF_MINE_YAML

The model's settings are those that it was trained with; any flag given overrides one. Writes
downstream_<checkpoint's name>.json. Accuracies: `acc` takes the likeliest choice; `acc_norm` divides its
log-likelihood by the choice's number of characters (the harness's own, which does not count the space before
the choice); `acc_norm_nospace` by the number of its non-space characters.

Tasks come from the Hugging Face hub. For a node without internet, run once with --limit 1 where there is
internet, then set HF_DATASETS_OFFLINE=1 and HF_HUB_OFFLINE=1 on the node, with the same HF_HOME.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import distributed
from config.parse import guarded, nearest
from config.schema import Flag
from errors import UserError
from optim.restore import CHECKPOINT, TOKENIZER, Restored, keep_result, output_folder, with_checkpoint

PROG = "downstream.py"
TASKS = ("mmlu", "arc_easy", "arc_challenge", "hellaswag", "piqa")
# of Table 3
COLUMNS = {
    "mmlu": ("mmlu",),
    "arc": ("arc_easy", "arc_challenge"),
    "hellaswag": ("hellaswag",),
    "piqa": ("piqa",),
}
METRICS = ("acc", "acc_norm", "acc_norm_nospace")
PAPER = Path(__file__).parent / "report" / "paper.json"
SEED = 1234  # of few-shot examples and of models that draw in evaluation
OWN_FLAGS = {
    "downstream tasks": (
        CHECKPOINT,
        TOKENIZER,
        Flag("tasks", str, None, f"tasks of the harness, or YAML files (None: {' '.join(TASKS)})", many=True),
        Flag("limit", int, None, "examples of each task, for a quick try (None: all)", low=1),
        Flag("output_dir", str, None, "where to write the results (None: beside the checkpoint)"),
        Flag("include_path", str, None, "folder with YAML files of more tasks"),
    )
}


def letters(text: str) -> int:
    """Number of non-space characters; at least 1, to divide by."""
    return max(1, sum(not character.isspace() for character in text))


def nospace_choice(loglikelihoods: Sequence[float], choices: Sequence[str]) -> int:
    """The choice with the best log-likelihood per non-space character; the first of equals."""
    scores = [total / letters(choice) for total, choice in zip(loglikelihoods, choices, strict=True)]
    return scores.index(max(scores))


def right_choices(target: Any, choices: Sequence[str]) -> set[int]:
    """Indices of the right choices, from a task's target: a number, the text of a choice, or several."""
    if isinstance(target, (list, tuple)):
        return {number for one in target for number in right_choices(one, choices)}
    if isinstance(target, int):
        return {target}
    return {number for number, choice in enumerate(choices) if choice.strip() == str(target).strip()}


def nospace_hits(samples: Iterable[Mapping[str, Any]]) -> list[float]:
    """1 or 0 for each example of a multiple-choice task; nothing for examples of other kinds.

    Tasks whose choices are in the context (all continuations after different contexts) have no lengths to
    divide by.
    """
    hits = []
    for sample in samples:
        pairs = sample["arguments"]
        answers = [
            answer
            for answer in sample["filtered_resps"]
            if isinstance(answer, (list, tuple)) and len(answer) == 2
        ]
        if len(answers) < 2 or len(answers) != len(pairs) or len({context for context, _ in pairs}) > 1:
            continue
        choices = [continuation for _, continuation in pairs]
        chosen = nospace_choice([float(total) for total, _ in answers], choices)
        hits.append(float(chosen in right_choices(sample["target"], choices)))
    return hits


def mean_and_error(hits: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard error of the mean (sample standard deviation / sqrt n), None where there are too
    few.
    """
    n = len(hits)
    if not n:
        return None, None
    mean = sum(hits) / n
    return mean, math.sqrt(sum((hit - mean) ** 2 for hit in hits) / (n - 1) / n) if n > 1 else None


def leaves(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group, of its groups and so on; a task is its own only one."""
    return [leaf for child in groups[name] for leaf in leaves(child, groups)] if name in groups else [name]


def rows_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each task and group: examples, accuracies and their standard errors, from what the harness
    returns.
    """
    groups, samples = results["group_subtasks"], results["samples"]
    rows = {}
    for name, metrics in results["results"].items():
        parts = leaves(name, groups)
        row: dict[str, Any] = {
            "examples": sum(len({sample["doc_id"] for sample in samples[part]}) for part in parts)
        }
        for metric in METRICS[:2]:
            for key in (metric, f"{metric}_stderr"):
                value = metrics.get(f"{key},none")
                row[key] = float(value) if isinstance(value, (int, float)) else None
        row["acc_norm_nospace"], row["acc_norm_nospace_stderr"] = mean_and_error(
            [hit for part in parts for hit in nospace_hits(samples[part])]
        )
        rows[name] = row
    return rows


def paper_columns(rows: Mapping[str, Mapping[str, Any]]) -> list[float | None]:
    """Our accuracies (percent, spaces not counted) in the columns of Table 3; arc is the mean of easy and
    challenge.
    """
    found = []
    for tasks in COLUMNS.values():
        values = [rows[task]["acc_norm_nospace"] if task in rows else None for task in tasks]
        found.append(None if None in values else 100 * sum(values) / len(values))  # type: ignore[arg-type]
    return [*found, None if None in found else sum(found) / len(found)]  # type: ignore[arg-type]


def load_tasks(names: Sequence[str], include_path: str | None) -> Any:
    """The harness's tasks with their data. Raises UserError where one does not exist or cannot be had."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include_path {include_path}: no such folder")
    manager = TaskManager(include_path=include_path)
    unknown = [name for name in names if name not in manager.all_tasks and not Path(name).is_file()]
    if unknown:
        raise UserError(
            "\n".join(f"unknown task {name}{nearest(name, manager.all_tasks)}" for name in unknown)
        )
    loaded = {"tasks": {}, "groups": {}, "group_map": {}}  # type: dict[str, dict[str, Any]]
    for name in names:
        try:
            part = manager.load([name])
        except Exception as error:  # whatever the hub, the network or a task's own code makes of it
            first = (str(error) or type(error).__name__).splitlines()[0][:300]
            raise UserError(
                f"task {name} cannot be loaded: {first} (without internet: load it once elsewhere with the"
                " same HF_HOME, then set HF_DATASETS_OFFLINE=1 and HF_HUB_OFFLINE=1)"
            ) from None
        for kind, content in loaded.items():
            content.update(part.get(kind, {}))
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def make_lm(restored: Restored, tokenizer: str | None) -> Any:
    """The checkpoint's model for the harness. Raises UserError where its tokenizer does not serve."""
    from data.tokenizer import named, open_tokenizer
    from data.vocabulary import unknown, vocabulary_of
    from optim.harness import CheckpointLM
    from optim.scoring import Scorer
    from optim.setup import autocaster

    args, world = restored.args, restored.world
    if world.size > 1:
        raise UserError(f"{PROG} runs on one process, not {world.size}")
    opened = open_tokenizer(vocabulary_of(restored.state, args, named(tokenizer) if tokenizer else None))
    if opened is None:
        raise unknown(args)
    if opened.known.end_of_text is None:
        raise UserError(
            "the tasks need a token that ends a document, with which a text begins; this model's tokenizer"
            f" ({opened.known.tokenizer}) has none"
        )
    return CheckpointLM(
        Scorer(restored.model(), world.device, args.batch_size, autocaster(args.dtype, world.device)), opened
    )


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Tasks and their accuracies in percent, each with its standard error."""
    lines = [f"{'task':<32}{'examples':>10}" + "".join(f"{name:>18}{'+-':>7}" for name in METRICS)]
    for name, row in rows.items():
        cells = "".join(
            f"{percent(row[metric]):>18}{percent(row[f'{metric}_stderr']):>7}" for metric in METRICS
        )
        lines.append(f"{name:<32}{row['examples']:>10}{cells}")
    return "\n".join(lines)


def paper_table(ours: Sequence[float | None], paper: Mapping[str, Any]) -> str:
    """Table 3 of the paper with this checkpoint as its last row."""
    lines = [f"{'Table 3':<32}" + "".join(f"{name:>11}" for name in paper["columns"])]
    for name, values in {
        **{key: value for key, value in paper.items() if key != "columns"},
        "this checkpoint": ours,
    }.items():
        lines.append(
            f"{name:<32}"
            + "".join(f"{'-' if value is None else format(value, '.2f'):>11}" for value in values)
        )
    return "\n".join(lines)


def run(restored: Restored, own: dict[str, Any]) -> None:
    """Evaluate, write the results and print them."""
    import lm_eval
    import torch
    from lm_eval.evaluator import evaluate

    from files import read_json

    path, args = restored.path, restored.args
    output = output_folder(own["output_dir"], path, prints=True)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    lm = make_lm(restored, own["tokenizer"])
    loaded = load_tasks(list(dict.fromkeys(own["tasks"] or TASKS)), own["include_path"])
    torch.manual_seed(SEED)
    begin = time.monotonic()
    results = evaluate(lm, loaded, limit=own["limit"], bootstrap_iters=1000, log_samples=True)
    rows = rows_of(results)
    ours = paper_columns(rows)
    summary = {
        "tasks": rows,
        "table3": dict(zip([*COLUMNS, "average"], ours, strict=True)),
        "lm_eval_results": results["results"],
        "num_fewshot": results["n-shot"],
        "versions": results["versions"],
        "limit": own["limit"],
        "lm_eval": lm_eval.__version__,
        "seconds": time.monotonic() - begin,
        "itr": restored.state.get("itr"),
        "checkpoint": str(path),
        "args": vars(args),
    }
    inside = {child for children in results["group_subtasks"].values() for child in children}
    print(table({name: row for name, row in rows.items() if name not in inside}))
    paper = (read_json(PAPER) or {}).get("table3_downstream")
    if paper and any(value is not None for value in ours):
        print(f"\n{paper_table(ours, paper)}")
    keep_result(output, f"downstream_{path.stem}.json", summary, "\nresults  ")


def check_installed() -> int:
    """0; raises UserError where the harness is missing, before a large checkpoint is read."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the evaluation harness is missing ({error}): pip install -r requirements-downstream.txt"
        ) from None
    return 0


def main(argv: list[str] | None = None) -> int:
    if not {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
        guarded(PROG, check_installed)
    # choices can lie closer together than bfloat16 resolves, so full precision unless --dtype says otherwise
    return with_checkpoint(
        PROG, "Evaluate a checkpoint on downstream tasks.", OWN_FLAGS, argv, run, {"dtype": "float32"}
    )


if __name__ == "__main__":
    distributed.run_and_end(main)
