"""Damage for files of every format: what it is, in words, and what it leaves.

Seeded, so that a failure can be made again.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st

Path = tuple[Any, ...]
HOSTILE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    0.5,
    3,
    2**31,
    2**63,
    10**30,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "None",
    "nan",
    "\ud800",
    "\0",
    "../../x",
    "x" * 300,
    "☃",
    [],
    [[]],
    [None],
    [1, "x"],
    {},
    {"x": 1},
]
ANY_JSON = st.one_of(
    st.sampled_from(HOSTILE),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)


# bytes


def damaged(raw: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A file cut short, with bits flipped, a part zeroed or overwritten, something added, or none of it
    left.
    """
    size = max(1, len(raw))
    place, more = draw.randrange(size), draw.randrange(1, 64)
    bits = [draw.randrange(size) for _ in range(draw.choice((1, 1, 1, 20)))]
    flipped = bytearray(raw or b"\0")
    for bit in bits:
        flipped[bit] ^= 1 << draw.randrange(8)
    return draw.choice(
        [
            (f"cut to {place} of {len(raw)} bytes", raw[:place]),
            ("one byte short", raw[:-1]),
            (f"bits flipped in bytes {bits}", bytes(flipped)),
            (f"bits flipped in bytes {bits}", bytes(flipped)),
            (f"{more} zeros from byte {place}", raw[:place] + bytes(more) + raw[place + more :]),
            (
                f"{more} random bytes from byte {place}",
                raw[:place] + draw.randbytes(more) + raw[place + more :],
            ),
            (f"{more} bytes added", raw + draw.randbytes(more)),
            (f"{more} bytes missing from byte {place}", raw[:place] + raw[place + more :]),
            ("empty", b""),
            ("random bytes", draw.randbytes(200)),
            ("zeros", bytes(len(raw))),
        ]
    )


# JSON


def paths(value: Any, before: Path = ()) -> Iterator[Path]:
    """Keys that lead to everything in nested objects and lists."""
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in items:
        yield (*before, key)
        yield from paths(inner, (*before, key))


def changed(value: Any, path: Path, edit: Callable[[Any, Any], None]) -> Any:
    """A copy in which `edit` was done to the container and key at the end of a path."""
    result = copy.deepcopy(value)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    edit(inner, path[-1])
    return result


def put(new: Any) -> Callable[[Any, Any], None]:
    return lambda container, key: container.__setitem__(key, new)


@st.composite
def json_texts(draw: st.DrawFn, text: str) -> tuple[str, str]:
    """JSON with a value missing or replaced (three times in four), something else as a whole, or cut
    short.
    """
    value = json.loads(text)
    kind = draw(st.sampled_from(("replaced", "missing", "replaced", "replaced", "whole", "cut")))
    if kind == "whole":
        new = draw(ANY_JSON)
        return f"all of it is {new!r:.80}", json.dumps(new)
    if kind == "cut":
        place = draw(st.integers(0, len(text)))
        return f"cut to {place} of {len(text)} characters", text[:place]
    outer = list(value) if isinstance(value, dict) else list(range(len(value)))
    path = draw(st.one_of(st.sampled_from([(key,) for key in outer]), st.sampled_from(list(paths(value)))))
    name = ".".join(map(str, path))
    if kind == "missing":
        return f"{name} missing", json.dumps(
            changed(value, path, lambda container, key: container.__delitem__(key))
        )
    new = draw(ANY_JSON)
    return f"{name} = {new!r:.80}", json.dumps(changed(value, path, put(new)))


@st.composite
def line_texts(draw: st.DrawFn, text: str) -> tuple[str, str]:
    """The same for one line of JSON lines, or with a line that is something else."""
    lines = text.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    what, line = draw(json_texts(lines[number]))
    return f"line {number + 1}: {what}", "\n".join([*lines[:number], line, *lines[number + 1 :]]) + draw(
        st.sampled_from(("\n", ""))
    )


# checkpoints


def changed_state(state: dict[str, Any], draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A checkpoint with a tensor missing, added, of another shape, dtype or kind, or not finite; or
    without one of its parts.
    """
    model = dict(state["model"])
    name = draw.choice(sorted(model))
    tensor, part = model[name], draw.choice(sorted(state))
    others = {
        "missing": None,
        "of another shape": tensor[..., :-1] if tensor.ndim else tensor[None],
        "a number": tensor.flatten()[:1].squeeze(),
        "empty": tensor[:0] if tensor.ndim else torch.zeros(0),
        "int64": tensor.long(),
        "bool": tensor.bool(),
        "float16": tensor.half(),
        "complex": tensor.to(torch.complex64),
        "NaN": torch.full_like(tensor.float(), float("nan")),
        "sparse": tensor.to_sparse(),
        "meta": None,
        "a text": "x",
        "a list": [1, 2],
        "None": None,
    }
    what = draw.choice(sorted(others))
    if draw.random() < 0.2:
        model[draw.choice(("another.weight", ""))] = tensor
        return "a name added", {**state, "model": model}
    if draw.random() < 0.2:
        new = draw.choice([None, 3, "x", [], {}, torch.zeros(2)])
        return f"{part} = {new!r}", {**state, part: new}
    if draw.random() < 0.1:
        return f"{part} missing", {key: value for key, value in state.items() if key != part}
    if what == "missing":
        del model[name]
    elif what == "meta":  # stored without its numbers
        model[name] = torch.empty_like(tensor, device="meta")
    else:
        model[name] = others[what]
    return f"{name} is {what}", {**state, "model": model}


def changed_settings(
    args: dict[str, Any], draw: random.Random, kept: frozenset[str]
) -> tuple[str, dict[str, Any]]:
    """Settings with one of another type or out of range.

    `kept` would only ask for more memory or time than there is.
    """
    name = draw.choice(sorted(args))
    large = (2**31, 2**63, 10**30)
    new = draw.choice(
        [value for value in HOSTILE if not (name in kept and type(value) is int and value in large)]
    )
    return f"args.{name} = {new!r:.60}", {**args, name: new}
