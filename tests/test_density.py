"""One idea a statement: at most one comprehension or conditional expression in each."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.sources import parsed, room

COUNTED = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)
# room -> statements that hold more than one; a number may only go down
CEILING = {"models": 0, "optim": 0, "data": 0}


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, those of statements inside it left out."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt):
            yield child
            yield from own_nodes(child)


def dense(tree: ast.Module) -> list[int]:
    """Lines of the statements that hold more than one."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and sum(isinstance(part, COUNTED) for part in own_nodes(node)) > 1
    ]


@pytest.mark.parametrize("name", CEILING)
def test_dense_statements_become_fewer(name: str) -> None:
    trees = {module: tree for module, tree in parsed().items() if room(module) == name}
    found = [f"{module}:{line}" for module, tree in trees.items() for line in dense(tree)]
    assert len(found) <= CEILING[name], "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("a = [x for x in y]", 0),
        ("a = [x if x else 0 for x in y]", 1),
        ("a = [[z for z in x] for x in y]", 1),
        ("if any(x for x in y):\n    b = 1 if c else 2", 0),
        ("f(1 if a else 2, 3 if b else 4)", 1),
        ("def f():\n    a = 1 if b else 2 if c else 3", 1),
        ("a = lambda x: [y for y in x] if x else None", 1),
    ],
)
def test_what_counts(source: str, count: int) -> None:
    assert len(dense(ast.parse(source))) == count
