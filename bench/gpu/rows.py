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
_faults: list[str] = []  # of the device, after which this process can compute nothing more


class Lacking(Exception):
    """What a row needs, and is not here: a compiler, a device, another row's figure."""


def need(check: Callable[..., object], *given: Any) -> None:
    """`check(*given)`, whose UserError names what this machine lacks. Raises Lacking."""
    try:
        check(*given)
    except UserError as error:
        raise Lacking(str(error)) from None


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
    """Run what tells a row. What goes wrong in it is a row FAIL, and the next is tried all the same, unless
    the device is lost: then they are SKIPPED, like one that needs what is not here (Lacking).
    """
    if _faults:
        tell(name, SKIPPED, note=_faults[0])
        return
    try:
        work()
    except Lacking as error:
        tell(name, SKIPPED, note=first_line(error))
    except Exception as error:  # whatever a broken driver, kernel or compiler makes of it
        traceback.print_exc()
        tell(name, FAIL, note=first_line(error))
        fault = fault_of_the_device()
        if fault:
            _faults.append(f"the device is lost since {name}: {fault}")


def fault_of_the_device() -> str:
    """Why CUDA can compute nothing more in this process, as after an illegal access; empty where it can."""
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except Exception as error:
        return first_line(error)
    return ""


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
