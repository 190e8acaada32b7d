"""Who may import whom: only what stands on a lower layer, or in the same room, and never in a circle. Imports
in functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.sources import parsed, room

# from the ground up; rooms of one layer know nothing of each other
LAYERS = (
    {"config"},
    {"models", "data", "distributed"},
    {"optim"},
    {"recipes"},
    {"report", "iridis"},
    {"monitor"},
)
# these may import each other
GROUND = {"errors", "files", "processes", "drawing"}
ROOMS = set().union(*LAYERS)
# what parses a command line, and who never sees one
COMMAND_LINE = {"config", "config.parse"}
WITHOUT_COMMAND_LINE = {"models", "data"}
# (importer, imported), each a module or all of a room -> why it is so still; the list may only get shorter
EXCEPTIONS = {
    ("config", "models.variants"): "the choices of --model, and which flags a model has a use for",
    ("models.export", "config"): "as a program, the file stands above the rooms",
    ("models.export", "data"): "as a program, the file stands above the rooms",
    ("models.export", "optim"): "as a program, the file stands above the rooms",
    ("models.hugging_face", "optim.slots"): "the KV cache of generation is kept with generation",
}
# imports without which no circle would be left -> why they are so still; the list may only get shorter
CIRCLES = {
    ("optim.setup", "optim.loop"): "the type of the trainer that it describes",
}
# the like, which may be gone already
PERHAPS_CIRCLES = {("models.policies", "models.transformer")}
Edge = tuple[str, str]


def imported(tree: ast.Module) -> Iterator[str]:
    """Full names that a file imports; of `from package import name`, package.name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """The module of the repository that holds a full name; None: it is not ours."""
    while name and name not in parsed():
        name = name.rpartition(".")[0]
    return name or None


@functools.cache
def edges() -> set[Edge]:
    """(importer, imported) of modules of the repository."""
    found = set()
    for importer, tree in parsed().items():
        for name in imported(tree):
            target = module_of(name)
            if target not in (None, importer):
                found.add((importer, target))
    return found


def layer(module: str) -> int:
    """0: the ground; doors, which are the programs at top level, stand above all."""
    if room(module) in GROUND:
        return 0
    for height, rooms in enumerate(LAYERS, start=1):
        if room(module) in rooms:
            return height
    return len(LAYERS) + 1


def is_allowed(edge: Edge) -> bool:
    importer, target = edge
    if room(importer) == room(target) or (room(importer) in GROUND and room(target) in GROUND):
        return True
    if target in COMMAND_LINE and room(importer) in WITHOUT_COMMAND_LINE:
        return False
    return layer(target) < layer(importer)


def covers(exception: Edge, edge: Edge) -> bool:
    return all(name == of or name.startswith(of + ".") for of, name in zip(exception, edge, strict=True))


def without_circles(graph: set[Edge]) -> None:
    """Raises CycleError, which names the modules of a circle."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, target in graph:
        sorter.add(importer, target)
    sorter.prepare()


def test_every_package_has_a_layer() -> None:
    packages = {room(module) for module in parsed() if "." in module}
    assert packages <= ROOMS


def test_imports_point_down() -> None:
    """So no door imports a door, and models and data know nothing of the training."""
    wrong = [edge for edge in edges() if not is_allowed(edge)]
    assert sorted(e for e in wrong if not any(covers(exception, e) for exception in EXCEPTIONS)) == []


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=" ".join)
def test_an_exception_is_needed_still(exception: Edge) -> None:
    assert any(covers(exception, edge) for edge in edges() if not is_allowed(edge))


def test_no_imports_make_a_circle() -> None:
    without_circles(edges() - CIRCLES.keys() - PERHAPS_CIRCLES)


@pytest.mark.parametrize("edge", CIRCLES, ids=" ".join)
def test_a_known_circle_is_there_still(edge: Edge) -> None:
    with pytest.raises(CycleError):
        without_circles(edges() - PERHAPS_CIRCLES - (CIRCLES.keys() - {edge}))


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        without_circles({("a", "b"), ("b", "c"), ("c", "a")})


@pytest.mark.parametrize(
    "edge",
    [
        ("eval", "generate"),
        ("optim.loop", "main"),
        ("models.macs", "optim.setup"),
        ("models.macs", "config.parse"),
        ("data.bins", "models"),
        ("errors", "config"),
        ("optim.loop", "report.rows"),
    ],
    ids=" ".join,
)
def test_an_import_that_points_up_is_found(edge: Edge) -> None:
    assert not is_allowed(edge)


@pytest.mark.parametrize(
    "line",
    [
        "import optim.loop",
        "from optim import loop",
        "from optim.loop import Trainer",
        "def f():\n    from optim.loop import Trainer",
        "if TYPE_CHECKING:\n    import optim.loop as training",
    ],
)
def test_each_form_of_an_import_is_seen(line: str) -> None:
    assert {module_of(name) for name in imported(ast.parse(line))} == {"optim.loop"}
