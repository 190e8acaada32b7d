"""Rows of the table: what a part tells, as one line of JSON each, as soon as it is known."""

from __future__ import annotations

import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from typing import Any

from errors import UserError
from files import json_text

PASS, FAIL, SKIPPED = "PASS", "FAIL", "SKIPPED"
CARDS_OF_THE_TARGETS = ("H100", "H200")


def judged(is_met: bool, card: str | None) -> str | None:
    """The verdict on a target. Targets are those of certain cards; on others a figure is only told."""
    if not any(name in (card or "") for name in CARDS_OF_THE_TARGETS):
        return None
    return PASS if is_met else FAIL


def row(
    name: str,
    verdict: str | None = None,
    value: float | None = None,
    unit: str = "",
    target: str = "",
    note: str = "",
) -> dict[str, Any]:
    """verdict: None for a figure that nothing is asked of. target: in words, `at least 3`."""
    return {
        "row": name,
        "verdict": verdict,
        "value": value,
        "unit": unit,
        "target": target,
        "note": note,
    }


def tell(name: str, verdict: str | None = None, **more: Any) -> None:
    print(json_text(row(name, verdict, **more)), flush=True)


def attempt(name: str, work: Callable[[], None]) -> None:
    """Run what tells a row. What goes wrong in it is a row FAIL, and the next is tried all the same; what
    this machine lacks (UserError) is a row SKIPPED.
    """
    try:
        work()
    except UserError as error:
        tell(name, SKIPPED, note=first_line(error))
    except Exception as error:  # whatever a broken driver, kernel or compiler makes of it
        traceback.print_exc()
        tell(name, FAIL, note=first_line(error))


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def run_one(description: str | None, parts: Mapping[str, Callable[[Namespace], None]]) -> None:
    """Run the part that the command line names, in the precision that trainings have."""
    from optim.setup import set_precision  # torch, which the parts alone load

    parser = ArgumentParser(description=description)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16", "float16"), default=["bfloat16"]
    )
    parser.add_argument("--model", default="lncot")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    given = parser.parse_args()
    set_precision(deterministic=False)
    for dtype in given.dtype:
        parts[given.part](Namespace(**{**vars(given), "dtype": dtype}))
