"""Fixtures of the attacks: programs in this process, and what hostile words would leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.chaos.attacks import Outcome, Program, landed


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a program's main in this process: what it does with its input is the same, and torch is loaded
    once.
    """

    def run(program: Program, *words: object) -> Outcome:
        capfd.readouterr()
        try:
            code = program([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fails where an attack of before has landed, and clears away what this one leaves."""
    assert not landed()
    yield
    for path in landed():
        path.unlink()
