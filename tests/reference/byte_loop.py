"""The cases of the byte-level training loop, by their groups."""

from collections.abc import Callable

from tests.reference.cases import Test, each

FILE = "byte_loop.json.gz"
DRIVEN: set[str] = set()  # groups that a test has asked for


def each_of(*groups: str) -> Callable[[Test], Test]:
    """Marks a reference test that runs once for each case of these groups."""
    DRIVEN.update(groups)
    return each(FILE, "cases", where=lambda case: case["group"] in groups)
