"""--config FILE.json: flag values, beside each other or in sections of any name.

    {"model": {"n_layer": 5, "n_embd": 128}, "train": {"lr": 0.001}, "seed": 3}

A key is a flag, or one of the recipe's spellings of it, whose value may be null for its default. A mixture of
datasets may be an object of names and weights. A recipe that declares sections takes no others, and no keys
beside them. `recipe`, as --print_config writes it, must be the recipe that is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from config.mixture import is_mixture, parse_mixture
from config.recipe import Recipe
from config.schema import dataset_or_mixture
from config.values import Problem, convert, mixture_text, nearest, parse_json

LARGEST_BYTES = 1 << 20


def read_config_file(path: str, recipe: Recipe, problems: list[Problem]) -> dict[str, Any]:
    """Flag values of a JSON object in a file; what is wrong with it goes to `problems`."""

    def wrong(line: str, flag: str = "config") -> None:
        problems.append(Problem(f"--config {path}: {line}", flag))

    try:
        content = read_object(path)
    except ValueError as error:
        wrong(str(error))
        return {}
    named = content.pop("recipe", recipe.name)
    if named != recipe.name:
        wrong(f"its settings are those of recipe {repr(named)[:60]}, not of {recipe.name}")
        return {}
    return values_of(content, recipe, wrong)


def values_of(content: Mapping[str, Any], recipe: Recipe, wrong: Callable[..., None]) -> dict[str, Any]:
    """Values of the flags of an object; `wrong` is called with a line and a flag for what is not right."""
    values: dict[str, Any] = {}
    place: dict[str, str] = {}  # of each value that was taken
    for section, key, value in entries(content, recipe):
        name = recipe.flag_named(key)
        here = "" if section is None else f" in section {section!r}"
        known = _keys(section, recipe)
        if key not in known and (recipe.sections or name not in recipe.flags or name == "config"):
            wrong(f"unknown key {key!r}{here}{_meant(key, known, recipe)}")
            continue
        if section is None and recipe.sections:
            wrong(f"section {key!r} must be an object of settings, not {json.dumps(value)[:60]}")
            continue
        if value is None and key in recipe.spellings:
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


def _keys(section: str | None, recipe: Recipe) -> Collection[str]:
    """What a section, or a file beside its sections (None), may hold."""
    if recipe.sections and section is None:
        return recipe.sections
    keys = recipe.sections.get(section or "", ())
    return keys or [name for name in recipe.names if name != "config"]


def _meant(key: str, known: Collection[str], recipe: Recipe) -> str:
    """What an unknown key may stand for: the flag that it names, where that stands, or the nearest key."""
    name = recipe.flag_named(key)
    for section, keys in recipe.sections.items():
        if name not in recipe.flags or name == "config":
            break
        if not keys:
            return f" (flags stand in section {section!r})"
        for spelling in keys:
            if recipe.flag_named(spelling) == name:
                return f" (did you mean {spelling} in section {section!r}?)"
    return nearest(key, known)


def _as_object(value: Any) -> Any:
    """A mixture as names and weights, where its text is no other than theirs; other values as they are."""
    if not isinstance(value, str) or not is_mixture(value):
        return value
    weights = parse_mixture(value)
    return weights if mixture_text(weights) == value else value


def in_sections(settings: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Values of all flags as a config file of the recipe holds them."""
    if not recipe.sections:
        return dict(settings)
    left = dict(settings)
    content: dict[str, Any] = {}
    for section, keys in recipe.sections.items():
        content[section] = {}
        for key in keys:
            name = recipe.flag_named(key)
            # null would stand for the default there
            if left[name] is not None:
                content[section][key] = _as_object(left.pop(name))
        if not keys:
            content[section] = left
    return content


def read_object(path: str) -> dict[str, Any]:
    """Raises ValueError with what is wrong."""
    try:
        size = os.stat(path).st_size
        text = Path(path).read_text(encoding="utf-8-sig") if size <= LARGEST_BYTES else ""
    except OSError as error:
        raise ValueError(error.strerror) from None
    except ValueError as error:
        raise ValueError(f"not valid JSON ({str(error)[:100]})") from None
    if size > LARGEST_BYTES:
        raise ValueError(f"{size} bytes is too large for a file of flags")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({str(error)[:100]})") from None
    if not isinstance(content, dict):
        raise ValueError("must hold one JSON object of flags and values")
    return content


def entries(content: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str | None, str, Any]]:
    """Section (None: beside the sections), key and value of every setting.

    An object is a section, also under the name of a flag as "model"; under that of --dataset only if all its
    keys are flags, as it may be a mixture. An empty one may be meant as a value and is left for `convert` to
    refuse.
    """
    for key, value in content.items():
        flag = recipe.flags.get(recipe.flag_named(key))
        is_section = flag is None or bool(value)
        if isinstance(value, dict) and flag is not None and flag.type is dataset_or_mixture:
            is_section = bool(value) and all(recipe.flag_named(inner) in recipe.flags for inner in value)
        if recipe.sections:
            is_section = key in recipe.sections
        if isinstance(value, dict) and is_section:
            for inner, inner_value in value.items():
                yield key, inner, inner_value
        else:
            yield None, key, value
