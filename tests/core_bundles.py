"""A small bundle of CORE's tasks, of all three kinds, in the layout of the public one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ANIMALS = ["cat", "dog", "fox", "owl"]
TASKS: list[dict[str, Any]] = [
    {
        "label": "animals",
        "dataset_uri": "words/animals.jsonl",
        "num_fewshot": [2],
        "icl_task_type": "multiple_choice",
        "continuation_delimiter": "\nAnswer: ",
    },
    {"label": "who", "dataset_uri": "who.jsonl", "num_fewshot": [0], "icl_task_type": "schema"},
    {"label": "last", "dataset_uri": "last.jsonl", "num_fewshot": [1], "icl_task_type": "language_modeling"},
]
ITEMS: dict[str, list[dict[str, Any]]] = {
    "words/animals.jsonl": [
        {"query": f"Animal number {n}?", "choices": ANIMALS, "gold": n % 4} for n in range(20)
    ],
    "who.jsonl": [
        {"context_options": [f"{n} was he", f"{n} was she"], "continuation": "who came.", "gold": n % 2}
        for n in range(5)
    ],
    "last.jsonl": [{"context": f"{n} and {n} are ", "continuation": str(2 * n)} for n in range(4)],
}
BASELINES = {"animals": "25", "who": "50.0", "last": "0"}


def write_bundle(folder: Path, tasks: Any = TASKS, **items: list[dict[str, Any]]) -> Path:
    """items: of some files, by their names without ending, instead of these."""
    given = {f"{name}.jsonl": rows for name, rows in items.items()}
    for uri, rows in (ITEMS | given).items():
        path = folder / "eval_data" / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": tasks}))  # which is YAML
    table = [["Task Category", "Eval Task", "Description", "Random baseline"]]
    table += [["words", label, '"of\ntwo lines"', baseline] for label, baseline in BASELINES.items()]
    (folder / "eval_meta_data.csv").write_text("".join(",".join(row) + "\n" for row in table))
    return folder
