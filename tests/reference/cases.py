"""The cases of the reference files, for the tests of this folder: each is named after its file, and is driven
by whatever cases that holds.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import DATA

Case = Any  # an entry of a list of the file: most are dicts
Test = Callable[..., Any]
tested = set[tuple[str, ...]]()  # lists of cases that some test runs: a file and keys
driven = set[int]()  # id() of cases that some test runs; `read` keeps them alive


def folder() -> Path:
    """The folder of the reference files: $REFERENCE_DIR where that is set."""
    return Path(os.environ.get("REFERENCE_DIR") or DATA / "reference")


@functools.cache
def read(file: str) -> Any:
    """Content of a JSON file of the folder, plain or compressed (.gz); None if it is missing."""
    path = folder() / file
    if not path.is_file():
        return None
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def cases(file: str, *keys: str) -> list[Case] | None:
    """The list under these keys of a file, or the file itself without keys; None if either is missing."""
    found = read(file)
    for key in keys:
        found = found.get(key) if found else None
    return found


def title(case: Case) -> str | None:
    """What a report calls a case; None: pytest numbers it."""
    name = case.get("id", case.get("name")) if isinstance(case, dict) else None
    return None if name is None else str(name)


def each(file: str, *keys: str, where: Callable[[Case], Any] = lambda _: True) -> Callable[[Test], Test]:
    """Marks a reference test that runs once for each case, its argument `case`, for which `where` holds.

    A missing file, or a file without such a list, skips the test with the reason.
    """
    tested.add((file, *keys))
    found = cases(file, *keys)
    if found is None:
        missing = " in ".join([*reversed(keys), str(folder() / file)])
        parameters = [pytest.param(None, marks=pytest.mark.skip(reason=f"no {missing}"), id="missing")]
    else:
        chosen = [case for case in found if where(case)]
        driven.update(map(id, chosen))
        parameters = [pytest.param(case, id=title(case)) for case in chosen]

    def mark(test: Test) -> Test:
        return pytest.mark.reference(pytest.mark.parametrize("case", parameters)(test))

    return mark


def of(group: str, key: str = "") -> Callable[[Case], bool]:
    """For `where`: cases of a group, which have an input of this name where one is given."""
    return lambda case: case["group"] == group and (not key or key in case["input"])
