"""What --reward may be, for the check of flags and for what makes the reward (optim/rewards.py)."""

from __future__ import annotations

import re

from config.values import nearest

EXACT, ARITHMETIC = "exact", "arithmetic"
REGEX = "regex:"  # before a pattern
VERIFIERS = (EXACT, ARITHMETIC)


def reward_problem(name: str) -> str | None:
    """Why this is no reward, in words that follow "--reward"; None where it can be one."""
    if name.startswith(REGEX):
        try:
            re.compile(name.removeprefix(REGEX))
        except (re.error, RecursionError, OverflowError) as error:
            return f"{name}: {error}"
        return None if name != REGEX else f"{REGEX} needs a pattern after the colon"
    if name in VERIFIERS or re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        return None
    choices = f"{', '.join(VERIFIERS)}, {REGEX}PATTERN or MODULE:FUNCTION"
    return f"{name!r} must be {choices}{nearest(name, VERIFIERS)}"
