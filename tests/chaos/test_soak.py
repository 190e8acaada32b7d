"""A training that goes on and on needs no more of anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos import FULL, scale
from tests.chaos.soak import GROWS, LIMIT, soak

pytestmark = pytest.mark.slow

WATCHED = scale(("handles", "threads"), GROWS)  # the others need longer to be told from noise


def test_nothing_grows(tmp_path: Path) -> None:
    minutes = float(os.environ.get("SOAK_MINUTES", "120")) if FULL else 0.2
    found = soak(minutes, tmp_path)
    assert {name: found["growth"][name] for name in WATCHED if found["growth"][name] > LIMIT} == {}, found
