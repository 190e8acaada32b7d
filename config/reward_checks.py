"""Rules for the flags of grpo: a line for each value or combination that cannot work."""

from __future__ import annotations

import re
from argparse import Namespace

from config.groups.objective import GRPO
from config.values import Problem, nearest

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


def grpo_problems(args: Namespace) -> list[Problem]:
    """Of rewards, completions and their evaluation."""
    if args.objective != GRPO:
        return []
    problems = []
    wrong = "is needed with --objective grpo" if args.reward is None else reward_problem(args.reward)
    if wrong is not None:
        problems.append(Problem(f"--reward {wrong}", "reward", "objective"))
    if args.completion_tokens >= args.sequence_length:
        line = (
            f"--completion_tokens {args.completion_tokens} leaves no room for prompts in --sequence_length"
            f" {args.sequence_length}"
        )
        problems.append(Problem(line, "completion_tokens", "sequence_length"))
    largest = max(args.pass_k or [1])
    if largest > args.eval_samples:
        line = f"--pass_k {largest} needs as many completions: --eval_samples is {args.eval_samples}"
        problems.append(Problem(line, "pass_k", "eval_samples"))
    return problems
