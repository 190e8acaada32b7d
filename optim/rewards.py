"""Rewards of completions: the built-in verifiers of --reward, and functions of the user's own.

    reward = reward_of("exact")
    reward("12+3=", "15", "15")         # 1.0

A reward is a pure function of prompt, completion and answer (None where an example has none), all text.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import reprlib
from collections.abc import Callable
from fractions import Fraction
from numbers import Real
from typing import Any

from config.reward_checks import ARITHMETIC, EXACT, REGEX, reward_problem
from errors import OwnError, UserError
from optim.user_code import failed, named_object

Reward = Callable[[str, str, str | None], float]
FLAG = "--reward"
PASSED = 1.0  # a completion passes with this reward or more
SHOWN = 60  # characters of a prompt in an error
LONGEST_EXPRESSION = 500  # characters
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
EXPRESSION = re.compile(r"[-+(\d][-+*/().\s\d]*")
OPERATIONS: dict[type, Callable[..., Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def exact(prompt: str, completion: str, answer: str | None) -> float:
    """1 where the completion is the answer, but for white space around it."""
    if answer is None:
        raise UserError("this example has no answer")
    return float(completion.strip() == answer.strip())


def arithmetic(prompt: str, completion: str, answer: str | None) -> float:
    """1 where the last number of the completion is the last one of the answer; without an answer, the value
    of the last expression of the prompt, of numbers, + - * / and parentheses.
    """
    wanted = value_of(prompt) if answer is None else _last_number(answer)
    if wanted is None:
        raise UserError("neither its answer nor its prompt has a number to compare with")
    return float(_last_number(completion) == wanted)


def _last_number(text: str) -> Fraction | None:
    found = NUMBER.findall(text.replace(",", ""))
    return Fraction(found[-1]) if found else None


def value_of(text: str) -> Fraction | None:
    """The value of the last arithmetic expression in a text; None where there is none."""
    found = EXPRESSION.findall(text)
    expression = found[-1].strip() if found else ""
    if not expression or len(expression) > LONGEST_EXPRESSION:
        return None
    try:
        return _evaluated(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluated(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_evaluated(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_evaluated(node.left), _evaluated(node.right))
    raise ValueError("no arithmetic expression")


BUILT_IN: dict[str, Reward] = {EXACT: exact, ARITHMETIC: arithmetic}


def _matches(pattern: str) -> Reward:
    compiled = re.compile(pattern)
    return lambda prompt, completion, answer: float(compiled.search(completion) is not None)


def _finite(found: Any) -> float | None:
    """What a reward has returned, as a float; None where it is no finite one."""
    if not isinstance(found, Real):
        return None
    try:
        number = float(found)
    except OverflowError:  # an integer or a fraction beyond all floats
        return None
    return number if math.isfinite(number) else None


class Checked:
    """A reward that is a finite number, or one line that says which example it fails on."""

    def __init__(self, name: str, function: Reward) -> None:
        self.name, self.function = name, function

    def __call__(self, prompt: str, completion: str, answer: str | None) -> float:
        """Raises OwnError, as one of several processes may meet the example."""
        where = repr(prompt) if len(prompt) <= SHOWN else f"{prompt[:SHOWN]!r}..."
        try:
            found = self.function(prompt, completion, answer)
        except UserError as error:
            raise OwnError(f"{FLAG} {self.name}: prompt {where}: {error}") from None
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise OwnError(str(failed(FLAG, self.name, f"the reward of prompt {where}", error))) from None
        number = _finite(found)
        if number is None:
            raise OwnError(
                f"{FLAG} {self.name}: the reward of prompt {where} must be a finite number, not"
                f" {' '.join(reprlib.repr(found).split())}"
            )
        return number


def reward_of(reward: str | Reward) -> Checked:
    """That of a name, as --reward has it, or of a function. Raises UserError."""
    if isinstance(reward, Checked):
        return reward
    if not isinstance(reward, str):
        return Checked(getattr(reward, "__name__", type(reward).__name__), reward)
    problem = reward_problem(reward)
    if problem is not None:
        raise UserError(f"{FLAG} {problem}")
    if reward.startswith(REGEX):
        return Checked(reward, _matches(reward.removeprefix(REGEX)))
    if reward in BUILT_IN:
        return Checked(reward, BUILT_IN[reward])
    function = named_object(FLAG, reward)
    if not callable(function):
        raise UserError(f"{FLAG} {reward}: {reward.partition(':')[2]} is no function")
    return Checked(reward, function)
