"""One value of a flag, from text or JSON, and what is wrong with it."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from config.adaptation import FORM, adaptation
from config.schema import Flag, boolean, dataset_or_mixture, prose

NO_VALUE = object()  # flag given without its value
KINDS = {int: "a whole number", float: "a number", boolean: "true or false", adaptation: FORM}


def kind_of(flag: Flag) -> Any:
    """int, float, boolean or another type; of a flag whose values a function makes of numbers, theirs."""
    returned = getattr(flag.type, "__annotations__", {}).get("return", "")
    if isinstance(returned, str) and returned.startswith(("int", "float")):
        return int if returned.startswith("int") else float
    return flag.type


class Problem(str):
    """A line about what is wrong, and the flags whose values it is about."""

    flags: frozenset[str]

    def __new__(cls, line: str, *flags: str) -> Problem:
        problem = super().__new__(cls, line)
        problem.flags = frozenset(flags)
        return problem


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean x?)"`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def convert(flag: Flag, value: Any) -> Any:
    """Value of a flag from text (command line) or JSON (config file).

    Raises ValueError with what is wrong.
    """
    if not flag.many or value is None:
        return _scalar(flag, value)
    parts = value if isinstance(value, list) else [value]
    if not parts:
        raise ValueError("needs a value")
    if flag.type is prose:
        return [prose(str(part)) for part in parts]
    words = [str(part).lower() for part in parts]
    if words == ["none"]:
        return _scalar(flag, None)
    if "none" in words:
        raise ValueError("takes None alone, without other values")
    return [_scalar(flag, part) for part in parts]


def _scalar(flag: Flag, value: Any) -> Any:
    if value is NO_VALUE:
        raise ValueError("needs a value")
    if flag.takes_none and isinstance(value, str) and value.lower() == "none":
        value = None
    if value is None:
        if flag.takes_none:
            return None
        raise ValueError("needs a value")
    if flag.type is dataset_or_mixture:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = _mixture_in(value)
        if isinstance(value, dict):
            value = mixture_text(value)
    if isinstance(value, (dict, list)):
        raise ValueError(f"takes one value, not {json.dumps(value)[:60]}")
    text = str(value)
    try:
        result = flag.type(text)
    except (ValueError, OverflowError):
        raise ValueError(f"must be {KINDS.get(kind_of(flag), 'a valid value')}, not {text!r}") from None
    if flag.choices and result not in flag.choices:
        raise ValueError(
            f"must be one of {', '.join(flag.choices)}, not {text!r}{nearest(text, flag.choices)}"
        )
    if isinstance(result, (int, float)) and not isinstance(result, bool):
        _check_number(flag, result, text)
    if isinstance(result, str) and any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in result):
        raise ValueError("must be plain UTF-8 text without control characters")
    return result


def _mixture_in(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"is no JSON object of names and weights ({str(error)[:100]})") from None


def parse_json(text: str) -> Any:
    """Raises ValueError, also where a key has two values, of which json.loads would take the last."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content and content[key] != value:
            raise ValueError(f"{key!r} stands twice in one object")
        content[key] = value
    return content


def mixture_text(weights: Mapping[str, Any]) -> str:
    """A JSON object of sources and their weights as the command line writes it. Raises ValueError."""
    if not weights:
        raise ValueError("names no source")
    for name, weight in weights.items():
        if not name.strip() or any(mark in name for mark in "=,/"):
            raise ValueError(f"has a source of the name {name!r}, which is none of a dataset")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"must give a number as the weight of {name}, not {json.dumps(weight)[:60]}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"must give {name} a finite weight of at least 0, not {str(weight)[:60]}")
    return ",".join(f"{name}={weight}" for name, weight in weights.items())


def _check_number(flag: Flag, number: float, text: str) -> None:
    if isinstance(number, int) and abs(number) >= 2**63:
        raise ValueError(f"is too large: {text}")
    if not math.isfinite(number):
        raise ValueError(f"must be finite, not {text!r}")
    if flag.low is not None and number < flag.low:
        raise ValueError(f"must be at least {flag.low:g}, not {text}")
    if flag.high is not None and number > flag.high:
        raise ValueError(f"must be at most {flag.high:g}, not {text}")
