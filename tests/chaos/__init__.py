"""Faults, abuse and attack, done for real: what docs/reliability.md promises.

A part runs with every test run, all with CHAOS=full.
"""

import os
from typing import TypeVar

FULL = os.environ.get("CHAOS") == "full"
T = TypeVar("T")


def scale(fast: T, full: T) -> T:
    """How many, how long or which ones: in every test run, and in `bash tests/chaos/run.sh --full`."""
    return full if FULL else fast
