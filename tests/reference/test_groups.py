"""Every list of cases of the reference files has a test, or a reason for having none."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reference.cases import driven, folder, read, tested

FILES = sorted(path.name for path in folder().iterdir()) if folder().is_dir() else []
# the order of documents on several processes, which is not ours: no row depends on their number
# and what the public coalescence code does wrong, in words: the cases have its values beside the right ones
DOCUMENTATION = {
    ("modern_gpt.json.gz", "sharding", "cases"),
    ("coalescence.json.gz", "defects"),
}


def lists_of_cases(content: Any, *keys: str) -> Iterator[tuple[str, ...]]:
    """Keys of the outermost lists of dicts."""
    if isinstance(content, list) and content and isinstance(content[0], dict):
        yield keys
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from lists_of_cases(value, *keys, key)


def import_tests() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.reference.{path.stem}")


@pytest.mark.reference
@pytest.mark.parametrize("file", [name for name in FILES if name.endswith((".json", ".json.gz"))])
def test_each_list_of_cases_is_tested(file: str) -> None:
    import_tests()
    found = {(file, *keys) for keys in lists_of_cases(read(file))}
    if not any(name == file for name, *_ in tested):
        pytest.skip("a file that no test is about")
    assert found <= tested | DOCUMENTATION


@pytest.mark.reference
def test_each_group_of_the_library_is_tested() -> None:
    import_tests()
    found = read("training_library.json.gz")
    if found is None:
        pytest.skip("no training_library.json.gz")
    left = {case["group"] for case in found["cases"] if id(case) not in driven}
    assert not left
