"""A training that goes on and on needs no more of anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos import FULL, scale
from tests.chaos.soak import LIMIT, soak

pytestmark = pytest.mark.slow

GROWS = scale(("handles", "threads"), ("handles", "threads", "memory_kib", "cpu_ms_per_step"))


def test_nothing_grows(tmp_path: Path) -> None:
    minutes = float(os.environ.get("SOAK_MINUTES", "120")) if FULL else 0.3
    found = soak(minutes, tmp_path)
    assert {name: found["growth"][name] for name in GROWS if found["growth"][name] > LIMIT} == {}, found
