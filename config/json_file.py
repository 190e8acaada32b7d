"""--config FILE.json: flag values, beside each other or in sections of any name.

    {"model": {"n_layer": 5, "n_embd": 128}, "train": {"lr": 0.001}, "seed": 3}

A key is a flag, or one of the recipe's spellings of it. `recipe`, as --print_config writes it, must be the
recipe that is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from config.recipe import Recipe
from config.values import Problem, convert, nearest

LARGEST_BYTES = 1 << 20


def read_config_file(path: str, recipe: Recipe, problems: list[Problem]) -> dict[str, Any]:
    """Flag values of a JSON object in a file; what is wrong with it goes to `problems`."""

    def wrong(line: str, flag: str = "config") -> None:
        problems.append(Problem(f"--config {path}: {line}", flag))

    try:
        content = _read_object(path)
    except ValueError as error:
        wrong(str(error))
        return {}
    named = content.pop("recipe", recipe.name)
    if named != recipe.name:
        wrong(f"its settings are those of recipe {repr(named)[:60]}, not of {recipe.name}")
        return {}
    return _values(content, recipe, wrong)


def _values(content: Mapping[str, Any], recipe: Recipe, wrong: Callable[..., None]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    place: dict[str, str] = {}  # of each value that was taken
    for section, key, value in _entries(content, recipe):
        name = recipe.flag_named(key)
        here = "" if section is None else f" in section {section!r}"
        if name not in recipe.flags or name == "config":
            wrong(f"unknown key {key!r}{here}{nearest(key, recipe.names)}")
            continue
        try:
            converted = convert(recipe.flags[name], value)
        except ValueError as error:
            wrong(f"{key}{here} {error}", name)
            continue
        if name not in values:
            values[name], place[name] = converted, here
        elif values[name] != converted:
            first, second = json.dumps(values[name])[:60], json.dumps(converted)[:60]
            wrong(f"{name} is {first}{place[name]} and {second}{here}", name)
    return values


def _read_object(path: str) -> dict[str, Any]:
    """Raises ValueError with what is wrong."""
    try:
        size = os.stat(path).st_size
        text = Path(path).read_text(encoding="utf-8") if size <= LARGEST_BYTES else ""
    except OSError as error:
        raise ValueError(error.strerror) from None
    except ValueError as error:
        raise ValueError(f"not valid JSON ({str(error)[:100]})") from None
    if size > LARGEST_BYTES:
        raise ValueError(f"{size} bytes is too large for a file of flags")
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({str(error)[:100]})") from None
    if not isinstance(content, dict):
        raise ValueError("must hold one JSON object of flags and values")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where a key has two values, of which json.loads would take the last."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content and content[key] != value:
            raise ValueError(f"{key!r} stands twice in one object")
        content[key] = value
    return content


def _entries(content: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str | None, str, Any]]:
    """Section (None: beside the sections), key and value of every setting.

    An object is a section, also under the name of a flag as "model"; an empty one there may be meant as a
    value and is left for `convert` to refuse.
    """
    for key, value in content.items():
        is_flag = recipe.flag_named(key) in recipe.flags
        if isinstance(value, dict) and (value or not is_flag):
            for inner, inner_value in value.items():
                yield key, inner, inner_value
        else:
            yield None, key, value
