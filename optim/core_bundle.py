"""The tasks of CORE from the public bundle, a folder or zip of the user's.

    tasks = read_bundle("eval_bundle.zip")

The path, or a folder eval_bundle in it, holds
    core.yaml            icl_tasks, a list of label, dataset_uri, num_fewshot, icl_task_type and, if it is not
                         one space, continuation_delimiter
    eval_meta_data.csv   columns "Eval Task" and "Random baseline", percent
    eval_data/           at each dataset_uri, an item a line as JSON: {query, choices, gold},
                         {context_options, continuation, gold} or {context, continuation}
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from optim.core_tasks import DELIMITER, KINDS, LANGUAGE_MODELING, MULTIPLE_CHOICE, Item, Task, selected

FOLDER, TASKS, BASELINES, DATA = "eval_bundle", "core.yaml", "eval_meta_data.csv", "eval_data"
LABEL, BASELINE = "Eval Task", "Random baseline"
Place = Path | zipfile.Path


def read_bundle(path: str, most: int) -> list[Task]:
    """All tasks, with the items that are used, in their order. most: how many of each; all where it is not
    positive.

    Raises UserError with a line for each task that cannot be used.
    """
    root = _root(path)
    entries, baselines = _entries(root), _baselines(root)
    tasks: list[Task] = []
    problems = []
    for number, entry in enumerate(entries, start=1):
        try:
            task = _task(root, entry, baselines, most)
            if any(task.label == other.label for other in tasks):
                raise UserError("its label is that of another task")
            tasks.append(task)
        except UserError as error:
            label = entry.get("label", number) if isinstance(entry, dict) else number
            problems.append(f"--core_data {path}: task {label}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return tasks


# files


def _root(path: str) -> Place:
    """The folder, in a zip or not, that holds the list of tasks. Raises UserError."""
    place: Place = Path(path)
    if not path or not place.exists():
        raise UserError(f"--core_data {path or repr(path)}: no such file or folder")
    if place.is_file():
        try:
            place = zipfile.Path(path)
        except (zipfile.BadZipFile, OSError):
            raise UserError(f"--core_data {path}: it is neither a folder nor a zip file") from None
    for folder in (place, place / FOLDER):
        if (folder / TASKS).is_file():
            return folder
    raise UserError(f"--core_data {path}: there is no {TASKS} in it, nor in {FOLDER}/ below it")


def _text(file: Place) -> str:
    """Raises UserError."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: it is no text in UTF-8") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{file}: it cannot be unpacked ({error})") from None


def _entries(root: Place) -> list[Any]:
    """The list of tasks. Raises UserError."""
    import yaml  # late: only CORE needs it

    file = root / TASKS
    try:
        content = yaml.safe_load(_text(file))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"{file}: it is no YAML{where}") from None
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}: there is no list of tasks, icl_tasks, in it")
    return entries


def _baselines(root: Place) -> Mapping[str, str]:
    """Accuracies of guessing as text, by task. Raises UserError."""
    file = root / BASELINES
    try:
        rows = list(csv.DictReader(io.StringIO(_text(file), newline="")))
    except csv.Error as error:
        raise UserError(f"{file}: it is no table ({error})") from None
    for row in rows:
        if row.get(LABEL) is None or row.get(BASELINE) is None:
            raise UserError(f'{file}: a row has no "{LABEL}" or no "{BASELINE}"')
    return {row[LABEL]: row[BASELINE] for row in rows}


# tasks


def _task(root: Place, entry: Any, baselines: Mapping[str, str], most: int) -> Task:
    """Raises UserError, without the task's name."""
    if not isinstance(entry, dict):
        raise UserError("it is no mapping of keys and values")
    for key in ("label", "dataset_uri", "icl_task_type"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UserError(f"{key} must be a text")
    kind, delimiter = entry["icl_task_type"], entry.get("continuation_delimiter", DELIMITER)
    if kind not in KINDS:
        raise UserError(f"icl_task_type {kind!r} is none of {', '.join(KINDS)}")
    if not isinstance(delimiter, str):
        raise UserError("continuation_delimiter must be a text")
    label, shots, baseline = entry["label"], _fewshot(entry), _baseline(baselines.get(entry["label"]))
    items = list(_items(root / DATA / entry["dataset_uri"], kind))
    order = selected(len(items), most)
    if len(order) <= shots:
        cut = f" with --core_metric_max_per_task {most}" if len(order) < len(items) else ""
        raise UserError(f"it has {len(order)} items{cut}, too few for {shots} examples (num_fewshot) of each")
    return Task(label, kind, [items[index] for index in order], shots, baseline, delimiter)


def _fewshot(entry: Mapping[str, Any]) -> int:
    """The first of num_fewshot's numbers. Raises UserError."""
    given = entry.get("num_fewshot")
    number = given[0] if isinstance(given, list) and given else given
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise UserError(f"num_fewshot must be a list of whole numbers, such as [10], not {given!r}")
    return number


def _baseline(text: str | None) -> float:
    """Raises UserError."""
    if text is None:
        raise UserError(f"{BASELINES} has no row for it")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 100:
        raise UserError(f"its {BASELINE} in {BASELINES}, {text!r}, is no percentage below 100")
    return value


# items


def _items(file: Place, kind: str) -> Iterator[Item]:
    """Raises UserError."""
    found = False
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        found = True
        try:
            yield _item(json.loads(line), kind)
        except (ValueError, RecursionError):
            raise UserError(f"{file}, line {number}: it is no JSON") from None
        except UserError as error:
            raise UserError(f"{file}, line {number}: {error}") from None
    if not found:
        raise UserError(f"{file}: it is empty")


def _item(row: Any, kind: str) -> Item:
    """Raises UserError."""
    if not isinstance(row, dict):
        raise UserError("it is no JSON object")
    if kind == LANGUAGE_MODELING:
        return Item(((_string(row, "context").strip(), _string(row, "continuation")),))
    if kind == MULTIPLE_CHOICE:
        query, choices = _string(row, "query"), _strings(row, "choices")
        options = [(query, choice) for choice in choices]
    else:
        continuation, contexts = _string(row, "continuation"), _strings(row, "context_options")
        options = [(context, continuation) for context in contexts]
    gold = row.get("gold")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(options):
        raise UserError(f"gold must be 0 to {len(options) - 1}, not {gold!r}")
    return Item(tuple(options), gold)


def _string(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise UserError(f"{key} must be a text")
    return value


def _strings(row: Mapping[str, Any], key: str) -> Sequence[str]:
    values = row.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(each, str) for each in values):
        raise UserError(f"{key} must be a list of texts")
    return values
